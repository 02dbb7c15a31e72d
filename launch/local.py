"""Run one `srpo` command on this machine with N virtual CPU devices, and pass signals on to it.

A mesh of 8 devices on a laptop is the cheapest way to try one of 8 chips. One spec, one renderer:
what is printed is what `run` starts.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass

from srpo_jax.errors import UserError

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Local:
    """A command of `srpo` (its arguments) on `devices` virtual CPU devices of this machine."""

    command: tuple[str, ...]
    devices: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.command:
            raise UserError(
                "no command; put it behind --, as in: -- train --config=... --workdir=..."
            )
        if self.devices < 1:
            raise UserError(f"--devices={self.devices}: at least 1 is needed")
        if self.processes != 1:
            raise UserError(
                f"--processes={self.processes}: several processes are not supported yet; "
                "use one process with more --devices"
            )

    def argv(self) -> list[str]:
        """What is executed: no shell in between, so that the program itself gets the signals."""
        return [sys.executable, "-m", "srpo_jax.cli", *self.command]

    def environment(self) -> dict[str, str]:
        """What is set besides the environment that is there already."""
        return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(self.devices)}


def render(spec: Local) -> str:
    """The command line that does the same from a shell; holds no variable but the ones set here."""
    variables = [f"{name}={value}" for name, value in spec.environment().items()]
    return " ".join(["env", *variables, *map(shlex.quote, spec.argv())])


def run(spec: Local) -> int:
    """Starts the command, waits, and returns its exit code (128 + n when signal n ended it).

    SIGTERM, SIGINT and SIGHUP go to the command, which saves and stops; this process then ends with
    it. The command runs in a session of its own, so that Ctrl-C reaches it once and not twice.
    """
    child = None
    waiting: list[int] = []  # signals that came before the command was there

    def forward(number: int, _frame: object) -> None:
        if child is None:
            waiting.append(number)
        elif child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        child = subprocess.Popen(
            spec.argv(), env={**os.environ, **spec.environment()}, start_new_session=True
        )
        for number in waiting:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
