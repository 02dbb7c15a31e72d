"""A disk that fails at the n-th write, fsync or rename of a folder, for this process alone.

Python's own writes are counted; those of C++ and Rust (array_record, safetensors) are not, but the
fsync and the rename behind them are.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from tests.support.patched import patched


class Killed(BaseException):
    """The process is gone: nothing of it writes any more."""


class FailingDisk:
    """Counts what is written under `folder`. at: the number of the operation that fails first, from
    1; 0: none does. From then on every one fails: with kill=False for want of space, which does not
    keep a process from removing files; with kill=True as if the process were killed there.
    """

    def __init__(self, folder: pathlib.Path, at: int = 0, *, kill: bool = False):
        self.folder, self.at, self.kill = str(folder), at, kill
        self.count, self.failed = 0, False

    def _step(self, path: Any, *, removes: bool = False) -> None:
        if not str(path).startswith(self.folder):
            return
        if not removes:
            self.count += 1
            self.failed |= self.count == self.at
        if self.failed and self.kill:
            raise Killed
        if self.failed and not removes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[FailingDisk]:
        """In a `with`: the operating system's functions are this disk's."""
        true = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink")}
        open_, os_open = io.open, os.open
        names: dict[int, str] = {}

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return open_(file, mode, *args, **kwargs)
            self._step(os.fspath(file))
            found = open_(file, mode, *args, **kwargs)
            write = found.write

            def counted(data: Any) -> int:
                self._step(os.fspath(file))
                return write(data)

            found.write = counted
            return found

        def os_opened(path: Any, *args: Any, **kwargs: Any) -> int:
            number = os_open(path, *args, **kwargs)
            names[number] = os.fspath(path)
            return number

        def fsync(descriptor: int) -> None:
            self._step(names.get(descriptor, self.folder))
            true["fsync"](descriptor)

        def moved(name: str) -> Any:
            def move(source: Any, target: Any, **kwargs: Any) -> None:
                self._step(os.fspath(target))
                true[name](source, target, **kwargs)

            return move

        def unlink(path: Any, **kwargs: Any) -> None:
            self._step(os.fspath(path), removes=True)
            true["unlink"](path, **kwargs)

        places = [(builtins, "open", opened), (io, "open", opened), (os, "open", os_opened)]
        places += [(os, "fsync", fsync), (os, "unlink", unlink)]
        places += [(os, name, moved(name)) for name in ("replace", "rename")]
        with patched(places):
            yield self
