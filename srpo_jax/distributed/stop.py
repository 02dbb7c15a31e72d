"""Stopping a run in order: at a step's end, on all processes at the same one."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from srpo_jax.console import say


class StopRequest:
    """In a `with`: SIGTERM and the first SIGINT are noted, the second SIGINT interrupts at once.

    With several processes jax's own service takes SIGTERM and makes all stop at the same step; the
    first SIGINT is handed to it as one.
    """

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
            for number in numbers:
                self._old[number] = signal.signal(number, self._note if alone else self._pass_on)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        say(f"{signal.Signals(number).name}: finishing this step, then saving")

    def _pass_on(self, number: int, _: Any) -> None:
        signal.signal(number, signal.default_int_handler)  # the second one interrupts
        os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Whether to stop after this step. To be called at every step by every process."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None


def leave(number: int, step: int, steps: int) -> None:
    if jax.process_index() == 0:
        name = signal.Signals(number).name
        print(
            f"stopped by {name} after step {step}/{steps}; its checkpoint is saved and verified, "
            "run the same command again to go on",
            flush=True,
        )
    # A cluster takes 0 for "finished": launch/ asks for another code there, and starts it again.
    code = int(os.environ.get("SRPO_STOPPED_EXIT_CODE", 0))
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(code)
