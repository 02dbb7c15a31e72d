"""The ledger of a run: WORKDIR/events.jsonl says where the time went, over all its restarts.

A run is always in exactly one phase, so the seconds of the phases add up to the time that passed:

    init     imports, model, data, mesh       data     waiting for a batch
    restore  reading a checkpoint             save     what saving holds the loop up
    compile  the first step                   verify   reading the last checkpoint back
    step     everything else of the loop      validate looks at held-out data
                                              other    the rest

Only process 0 writes. A line is whole or is the last one: it is appended with one write, and a
torn last line is passed over. Seconds are of the monotonic clock, from the one reading of the wall
clock that starts a session.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import written_whole
from srpo_jax.runs.appended import Appended

FILE = "events.jsonl"
PHASES = ("init", "restore", "compile", "data", "step", "validate", "save", "verify", "other")


class Ledger:
    """The ledger's lines of one session (one start of the program). It is used in a `with`; `enter`
    changes the phase.

    path: of the ledger; with None (processes other than 0) nothing is written. born: when the
    session began, in seconds of the wall clock; default: now.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        *,
        born: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        self._path = None if path is None else pathlib.Path(path)
        self._clock, now = clock, wall()
        self._start = now if born is None else min(born, now)
        self._zero = clock() - (now - self._start)  # the monotonic time at `_start`
        self._phase, self._since = "init", self._zero
        self._spent: dict[str, float] = {}
        self._written = self._zero
        self._step = 0
        self._file: Appended | None = None
        self._torn = False

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if self._file is None:
            return
        why = "done" if error is None else kind.__name__
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            why = "stopped"
        self.write("end", why=why)
        with contextlib.suppress(OSError, RunFailure, UserError):
            self._file.close()
        self._file = None

    def open(self, step: int) -> None:
        """The run starts, or goes on, after `step` steps: from here on lines are written.

        Before that the workdir may not be there, or be another run's.
        """
        self._step = step
        if self._path is None or self._file is not None:
            return
        before = read(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self._path)
        self._file = Appended(self._path, clock=self._clock)
        last = before[-1] if before else {}
        facts: dict[str, Any] = {"start": round(self._start, 3)}
        if last and last.get("why") not in ("done", "stopped"):
            facts["crashed"] = True
        if last.get("step", 0) > step:
            facts["lost_steps"] = last["step"] - step
        self.write("start", **facts)

    def enter(self, phase: str) -> None:
        """Ends the phase that is under way and begins another. Cheap: a line about once a second,
        later on once in 30 s, but at once after a phase other than step and data.
        """
        now = self._clock()
        left = self._phase
        self._spent[left] = self._spent.get(left, 0.0) + now - self._since
        self._phase, self._since = phase, now
        pause = min(30.0, max(1.0, (now - self._zero) / 100))
        if left not in ("step", "data") or now - self._written >= pause:
            self.write("spent")

    def steps(self, step: int) -> None:
        """So many steps are done."""
        self._step = step

    def write(self, event: str, **facts: Any) -> None:
        """Writes one line: what happened, the time, the step, and the seconds of each phase since
        the line before. A disk that does not take it ends no run: the next line holds the seconds.
        """
        if self._file is None:
            return
        now = self._clock()
        self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._since = self._written = now
        line = {
            "event": event,
            "t": round(self._start + now - self._zero, 3),
            "step": self._step,
            "spent": {name: round(s, 4) for name, s in self._spent.items() if s >= 5e-5},
            **facts,
        }
        data = (b"\n" if self._torn else b"") + json.dumps(line).encode() + b"\n"
        try:
            self._torn = self._file.write(data) < len(data)
        except OSError:
            self._torn = True
        if not self._torn:
            self._spent = {}


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a ledger, [] when there is no such file. A torn line is passed over."""
    path = pathlib.Path(path)
    if not path.is_file():
        return []
    return list(_rows(path.read_bytes()))


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("t"), (int, float)):
            yield row


def _drop_torn_line(path: pathlib.Path) -> None:
    """What a kill in the middle of a write left of a line goes, so that the next one is whole."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with written_whole(path) as fresh:
            fresh.write_bytes(content[: content.rfind(b"\n") + 1])


def process_start() -> float:
    """When this process began, in seconds of the wall clock: before Python could ask for it."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - (since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux
        return time.time()
