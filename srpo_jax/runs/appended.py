"""A file that lines are appended to for hours. What is written is there at once; on a mounted
bucket, where others see a file and a hard death keeps it only when it was closed, after half a
minute.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.keepers import extend

CLOSE_SECONDS = 30.0  # a bucket takes about one change of an object in a second, not one a line


class Appended:
    """Opens the file when something is to be written, and closes it with the first write that comes
    CLOSE_SECONDS or later after it was closed before.

    Errors: OSError, of any call; of `close` also RunFailure and UserError, where the file is kept
    in a bucket (keepers.py).
    """

    def __init__(self, path: pathlib.Path, *, clock: Callable[[], float] = time.monotonic):
        self._path, self._clock = path, clock
        self._file: Any = None
        self._closed = clock() - CLOSE_SECONDS

    def write(self, data: bytes) -> int:
        """Appends with one write, and returns how many bytes were taken."""
        if self._file is None:
            self._file = open(self._path, "ab", buffering=0)
        taken = self._file.write(data)
        if self._clock() - self._closed >= CLOSE_SECONDS:
            with contextlib.suppress(RunFailure, UserError):  # of a bucket: the next one has it all
                self.close()
        return taken

    def close(self) -> None:
        """Closes the file; a write opens it again."""
        file, self._file = self._file, None
        self._closed = self._clock()
        if file is not None:
            file.close()
            extend(self._path)
