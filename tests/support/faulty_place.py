"""A local folder that behaves like a bucket mounted by gcsfuse without hierarchical namespace, or
like NFS with its caches, for this process alone.

    folders         how the rename of a folder goes: "refused" (EMFILE), or in many "steps"
    late_losers     a file opened to be new is there when it is closed, and ESTALE tells the loser
    stale_seconds   so long stat and lstat say what they said before, but of what this process did

Python's own calls are caught; those of C++ (tensorstore, array_record) go to the disk as they are.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from tests.support.failing_disk import Killed
from tests.support.patched import patched

LOOKS = ("stat", "lstat")
CHANGES = ("utime", "unlink", "rmdir", "mkdir")


class FaultyPlace:
    """In a `with`: what lies under `folder` has these faults. dies_after: the process is killed
    (Killed) when it has moved so many files of a folder that is renamed in steps.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        folders: str = "steps",
        late_losers: bool = True,
        stale_seconds: float = 0.0,
        dies_after: int | None = None,
    ):
        self.folder, self.folders = str(folder), folders
        self.late_losers, self.stale_seconds, self.dies_after = (
            late_losers,
            stale_seconds,
            dies_after,
        )
        self.moved = self.lost = 0  # files of folders; who was told at closing
        self._seen: dict[tuple[str, str], tuple[float, Any]] = {}

    def _inside(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[FaultyPlace]:
        true = {name: getattr(os, name) for name in (*LOOKS, *CHANGES, "rename", "replace")}
        open_ = io.open

        def rename(source: Any, target: Any, **kwargs: Any) -> None:
            self._forget(source, target)
            if self._inside(source) and os.path.isdir(source):
                if self.folders == "refused":
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), source, None, target)
                self._in_steps(true["rename"], pathlib.Path(source), pathlib.Path(target))
                return
            true["rename"](source, target, **kwargs)

        def replace(source: Any, target: Any, **kwargs: Any) -> None:
            self._forget(source, target)
            true["replace"](source, target, **kwargs)

        def own(name: str) -> Any:
            def change(path: Any, *args: Any, **kwargs: Any) -> Any:
                self._forget(path)
                return true[name](path, *args, **kwargs)

            return change

        def looked(name: str) -> Any:
            def look(path: Any, **kwargs: Any) -> Any:
                if not self.stale_seconds or not self._inside(path):
                    return true[name](path, **kwargs)
                key, now = (name, os.fspath(path)), time.monotonic()
                if key in self._seen and now - self._seen[key][0] < self.stale_seconds:
                    return self._seen[key][1]
                found = true[name](path, **kwargs)  # what is not there is asked for again
                self._seen[key] = (now, found)
                return found

            return look

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if self._inside(file) and set(mode) & set("wax+"):
                self._forget(file)
            if "x" not in mode or not self.late_losers or not self._inside(file):
                return open_(file, mode, *args, **kwargs)
            if os.path.lexists(file):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), file)
            return self._closing(open_, file, mode, args, kwargs)

        places = [(builtins, "open", opened), (io, "open", opened)]
        places += [(os, "rename", rename), (os, "replace", replace)]
        places += [(os, name, own(name)) for name in CHANGES]
        places += [(os, name, looked(name)) for name in LOOKS]
        with patched(places):
            yield self

    def _forget(self, *paths: Any) -> None:
        for path in paths:
            if not os.path.isabs(path):  # as rmtree names what it removes
                self._seen.clear()
            for name in LOOKS:
                self._seen.pop((name, os.fspath(path)), None)

    def _in_steps(self, rename: Any, source: pathlib.Path, target: pathlib.Path) -> None:
        target.mkdir(exist_ok=True)
        for here, folders, names in os.walk(source, topdown=False):
            there = target / pathlib.Path(here).relative_to(source)
            there.mkdir(parents=True, exist_ok=True)
            for name in sorted(names):
                if self.moved == self.dies_after:
                    raise Killed
                rename(os.path.join(here, name), there / name)
                self.moved += 1
            for name in folders:
                (there / name).mkdir(exist_ok=True)
            os.rmdir(here)

    @contextlib.contextmanager
    def _closing(self, open_: Any, file: Any, mode: str, args: Any, kwargs: Any) -> Iterator[Any]:
        own = f"{os.fspath(file)}.{time.monotonic_ns()}.tmp-"
        with open_(own, mode, *args, **kwargs) as written:
            yield written
        try:
            os.link(own, file)
        except FileExistsError:
            self.lost += 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), file) from None
        finally:
            os.unlink(own)
