"""What a command says while it is at work: one line with a bar that is written over and over on a
terminal, plain lines now and then in a log.

Also the first sign of life: compiling takes minutes, is said, and is left out of all rates.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

WIDTH = 120  # columns that a line may have
BAR = 20
STILL_SECONDS = 60.0  # between two lines of a long compilation
_lock = threading.RLock()
_drawn: Any = None  # the stream on whose last line a bar stands
_compiled = 0.0


def say(text: str, *, to: Any = None) -> None:
    """Prints a line (default: on stdout), below the bar if one stands there."""
    global _drawn
    with _lock:
        if _drawn is not None:
            with contextlib.suppress(OSError, ValueError):
                print(file=_drawn, flush=True)
            _drawn = None
        print(text, file=to or sys.stdout, flush=True)


class Bar:
    """Shows how far something is; in a `with`, so that its last line ends.

    every: whether a log gets each line; else about 20 by the time that has passed: one a second in
    the beginning, one in half a minute later on. The last one always comes.
    """

    def __init__(self, *, every: bool = False, clock: Callable[[], float] = time.monotonic):
        self._stream, self._every, self._clock = sys.stdout, every, clock
        self._terminal = is_terminal(self._stream)
        self._begin = self._last = clock()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        global _drawn
        with _lock:
            if _drawn is self._stream:
                print(file=self._stream, flush=True)
                _drawn = None

    def room(self) -> int:
        """Columns that a text may have: a terminal's beside the bar, WIDTH in a log."""
        return _columns() - BAR - len("[] ") if self._terminal else WIDTH

    def show(self, text: str, done: float, total: float) -> None:
        """text: without the bar; what has no room is cut."""
        global _drawn
        now = self._clock()
        pause = 0.1 if self._terminal else min(30.0, max(1.0, (now - self._begin) / 20))
        if not self._every and now - self._last < pause and done < total:
            return
        self._last = now
        if not self._terminal:
            print(text, file=sys.stdout, flush=True)
            return
        with _lock:
            line = f"{bar(done, total)} {text}"[: _columns()]
            print(f"\r{line}\x1b[K", end="", file=self._stream, flush=True)
            _drawn = self._stream


def bar(done: float, total: float) -> str:
    """[####----------------]"""
    full = min(BAR, max(0, int(BAR * done / total))) if total > 0 else BAR
    return f"[{'#' * full}{'-' * (BAR - full)}]"


def is_terminal(stream: Any) -> bool:
    """Whether what is written there can be written over."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


@contextlib.contextmanager
def compiling(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Says on stderr that `what` compiles, every minute that it still does, and how long it took.
    The seconds count for compile_seconds. quiet: nothing is said (processes other than 0).
    """
    global _compiled
    begin, over = time.monotonic(), threading.Event()

    def still() -> None:
        while not over.wait(STILL_SECONDS):
            say(f"{what}: still compiling, {_since(begin):.0f} s", to=sys.stderr)

    thread = threading.Thread(target=still, name="compiling", daemon=True)
    if not quiet:
        say(f"{what}: compiling, which may take minutes", to=sys.stderr)
        thread.start()
    try:
        yield
    finally:
        over.set()
        if not quiet:
            thread.join()
        _compiled += _since(begin)
    if not quiet:
        say(f"{what}: compiled in {_since(begin):.0f} s", to=sys.stderr)


def compile_seconds() -> float:
    """How long this process has spent in `compiling`, all in all."""
    return _compiled


class Working:
    """A clock that stands still while something compiles."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._begin, self._compiled = clock(), compile_seconds()

    def seconds(self) -> float:
        """Since this object was made; more than 0."""
        compiled = compile_seconds() - self._compiled
        return max(self._clock() - self._begin - compiled, 1e-9)


def duration(seconds: float) -> str:
    """Seconds as 7s, 1m12s or 3h05m."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minute}m{second:02d}s" if minute else f"{second}s"


def _columns() -> int:
    return shutil.get_terminal_size((WIDTH, 24)).columns - 1  # a full line would begin another


def _since(begin: float) -> float:
    return time.monotonic() - begin
