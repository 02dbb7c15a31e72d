"""A run that hangs says where, then ends, so that the launcher can start it again.

A collective that waits for a lost peer, a network drive that does not answer: no exception comes,
and the run costs money until somebody looks. A thread with its own clock looks instead. No signal
is used: those belong to the launcher and to jax.
"""

from __future__ import annotations

import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.keepers import give_name, place_of

EXIT_CODE = 75  # EX_TEMPFAIL: not done, not the user's mistake, try again
WRITE_SECONDS = 5.0  # that writing a file of stacks is waited for
FIRST = 4  # the first step reads, restores and compiles: it may take so many times the limit


class Watchdog:
    """In a `with`: when no `beat` comes for `minutes`, the stacks of all threads go to stderr and
    FOLDER/process-N-TIME.txt; after as long again the process ends with exit code 75.

    minutes 0: never. Before the first beat, and after a beat with `patient`, the limit is four
    times as long.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        minutes: float,
        *,
        process: int = 0,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], Any] = os._exit,
    ):
        self._folder, self._seconds, self._process = pathlib.Path(folder), 60 * minutes, process
        self._clock, self._end = clock, end
        self._last, self._factor, self._at = clock(), FIRST, "the start"
        self._written: pathlib.Path | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._last = self._clock()
        if self._seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self, at: str, *, patient: bool = False) -> None:
        """To be called when something was finished, which `at` names. patient: what comes next may
        take long.
        """
        self._last, self._at, self._factor = self._clock(), at, FIRST if patient else 1
        self._written = None

    def look(self) -> None:
        """Compares the time since the last beat with the limit; the thread calls this again and
        again.
        """
        limit, silent = self._seconds * self._factor, self._clock() - self._last
        if silent > limit and self._written is None:
            self._written = self._write_stacks(silent)
        elif silent > 2 * limit:
            _say(f"watchdog: still nothing after {silent:.0f} s; ending with exit code {EXIT_CODE}")
            self._end(EXIT_CODE)

    def _watch(self) -> None:
        while not self._over.wait(min(10.0, self._seconds / 8)):
            self.look()

    def _write_stacks(self, silent: float) -> pathlib.Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._folder / f"process-{self._process}-{stamp}.txt"
        head = f"watchdog: process {self._process} finished nothing for {silent:.0f} s"
        head += f" after {self._at}"
        _say(f"{head}; the stacks of its threads follow, also in {place_of(path)}")
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
        # The hang may be the disk's: stderr first, and nothing here waits for an answer, or
        # the end would never come.
        writer = threading.Thread(
            target=self._write_file, args=(path, head), name="stacks", daemon=True
        )
        writer.start()
        writer.join(WRITE_SECONDS)
        return path

    def _write_file(self, path: pathlib.Path, head: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(head + "\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            give_name(path, path)  # now, as a process that ends here keeps nothing later
        except (OSError, RunFailure, UserError) as error:
            why = getattr(error, "strerror", None) or error
            _say(f"watchdog: {place_of(path)} was not written: {why}")


def _say(line: str) -> None:
    print(line, file=sys.__stderr__, flush=True)
