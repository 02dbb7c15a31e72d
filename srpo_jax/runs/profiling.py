"""`srpo train --profile`: a trace of a few steps, for xprof or TensorBoard's profile plugin.

The names in it are the model's: vision, embed, layers/.../attention, layers/.../ffn, head, loss,
optimizer (jax.named_scope); forward operations stand under jvp(...), backward ones under
transpose(...), and those recomputed for the backward pass under rematted_computation.
"""

from __future__ import annotations

import pathlib
import re
from contextlib import AbstractContextManager
from typing import Any

import jax

from srpo_jax.errors import UserError


def parse_window(text: str) -> tuple[int, int]:
    """ "10:13" -> (10, 13). Errors: UserError."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    window = (int(found[1]), int(found[2])) if found else (0, 0)
    if window[0] >= window[1]:
        raise UserError(
            f"--profile={text}: must be START:STOP, two step numbers counted from the start of "
            "this command, START the smaller one, as in --profile=10:13"
        )
    return window


def clip(window: tuple[int, int], steps: int) -> tuple[int, int]:
    """The part of the window that a run of so many steps has. If it has none, as many of the last
    steps; the first step, which compiles, is left out unless it is the only one.
    """
    start, stop = window
    if start >= steps:
        start = max(min(1, steps - 1), steps - (stop - start), 0)
    return start, min(stop, steps)


class Profile:
    """Traces steps [start, stop) of this process into `folder`; in a `with`, which also closes the
    trace of a run that is left early. Only process 0 traces (its own devices).

    window: None for no trace. first: the number of the process's first step, for messages.
    """

    def __init__(
        self, window: tuple[int, int] | None, folder: pathlib.Path, first: int, steps: int
    ):
        self._folder, self._first = folder, first
        self._tracing, self._done = False, 0
        self._start = self._stop = -1
        if window is not None and jax.process_index() == 0:
            self._start, self._stop = clip(window, steps)

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._finish()

    def step(self, number: int, before: Any) -> AbstractContextManager:
        """To be entered around the work of step `number` of this process, counted from 0.

        before: arrays of the step before, waited for so that the trace holds nothing of it.
        """
        if number == self._start < self._stop:
            jax.block_until_ready(before)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of every thread: large, slow, unread
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=self._first + number)

    def after(self, number: int, metrics: Any) -> None:
        """To be called when step `number` has been started; metrics: its arrays."""
        if not self._tracing:
            return
        self._done = number + 1
        if number + 1 == self._stop:
            jax.block_until_ready(metrics)
            self._finish()

    def _finish(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        steps = f"{self._first + self._start + 1} to {self._first + self._done}"
        print(
            f"profile: a trace of steps {steps} is in {self._folder}; to look at it: "
            f"pip install xprof, xprof --logdir={self._folder} --port=8791, then "
            "http://localhost:8791 (or tensorboard with the same --logdir)",
            flush=True,
        )
