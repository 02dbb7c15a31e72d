"""Copies of objects on this host: ROOT/BUCKET/NAME, and beside them which generation each is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from srpo_jax.buckets.objects import open_bucket, told
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import read_json, temporary_file, write_json

LARGE, PIECE = (".safetensors", ".array_record"), 2**26  # names and bytes: read in pieces
THREADS = 16  # files that are asked for at once
LOCK = ".lock"  # a file of the root
STATES = ".generations"  # folder of the root, beside those of the buckets
LAST = ".manifest.json"  # how the names of files end that are written last, and so fetched last


class Copies:
    """Those below the folder `root`."""

    def __init__(self, root: pathlib.Path):
        self.root = root

    def path(self, bucket: str, name: str) -> pathlib.Path:
        """Where the copy of an object lies, whether or not it was made."""
        return self.root / bucket / name

    def fetch(self, bucket: str, names: Iterable[str]) -> int:
        """Brings the copies up to date; returns how many of the names the bucket has. A copy of
        one that it has not is removed. Errors: UserError when one may not be read; RunFailure when
        one changes meanwhile, or the bucket does not answer.
        """
        store, names = open_bucket(bucket), list(names)
        ends = [name for name in names if name.endswith(LAST)]
        found = 0
        with self._alone(), ThreadPoolExecutor(THREADS, "fetch") as threads:
            for part in ([name for name in names if not name.endswith(LAST)], ends):
                found += sum(threads.map(lambda name: self._fetch_one(store, bucket, name), part))
        return found

    def known(self, bucket: str, folder: str) -> list[str]:
        """The names of objects below `folder` of which there are copies, sorted."""
        states = self.root / STATES / bucket
        found = sorted((states / folder).rglob("*.json"))
        return [path.relative_to(states).as_posix().removesuffix(".json") for path in found]

    def note(self, bucket: str, name: str, generation: bytes, facts: os.stat_result) -> None:
        """Says of which generation the copy is, whose size and time are these."""
        file = [facts.st_size, facts.st_mtime_ns]
        write_json(self._state(bucket, name), {"generation": generation.hex(), "file": file})

    def is_as_noted(self, bucket: str, name: str) -> bool:
        """Whether the copy is there, and nobody has written to it since it was noted."""
        return self._generation(bucket, name) is not None

    def remove(self, bucket: str, name: str) -> None:
        """Removes a copy, if there is one."""
        for path in (self._state(bucket, name), self.path(bucket, name)):
            path.unlink(missing_ok=True)

    def keep_only(self, bucket: str, folder: str, names: Collection[str]) -> None:
        """Removes the copies of what was below `folder` and is none of the names."""
        for name in self.known(bucket, folder):
            if name not in names:
                self.remove(bucket, name)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Of several processes of this host one fetches, and the others find it done. Where the
        root lies on a system without locks each fetches for itself.
        """
        path = self.root / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _state(self, bucket: str, name: str) -> pathlib.Path:
        return self.root / STATES / bucket / f"{name}.json"

    def _fetch_one(self, store: Any, bucket: str, name: str) -> bool:
        known = self._generation(bucket, name)
        found, tries = None, 3
        try:
            while found is None and tries:
                found, tries = self._read(store, bucket, name, known), tries - 1
        except ValueError as error:
            raise told(bucket, name, error) from None
        if found is None:
            raise RunFailure(
                f"gs://{bucket}/{name} was written again while it was read: start again"
            )
        return found

    def _generation(self, bucket: str, name: str) -> bytes | None:
        """Of which the copy is; None without one, or when it is not what was noted."""
        try:
            said, facts = read_json(self._state(bucket, name)), self.path(bucket, name).stat()
            found = bytes.fromhex(said["generation"])
            return found if [facts.st_size, facts.st_mtime_ns] == said["file"] else None
        except (OSError, UserError, ValueError, TypeError, KeyError):
            return None

    def _read(self, store: Any, bucket: str, name: str, known: bytes | None) -> bool | None:
        """Makes the copy unless it is of the generation `known`. Returns whether there is such an
        object; None when it was written meanwhile.
        """
        parts = _parts_of(store, name, known)
        first = next(parts)
        if first.state == "unspecified":
            return True
        if first.state == "missing":
            self.remove(bucket, name)
            return False
        generation, path = first.stamp.generation, self.path(bucket, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path) as fresh:
            with open(fresh, "wb") as file:
                file.write(first.value)
                for part in parts:
                    if part.state != "value" or part.stamp.generation != generation:
                        return None
                    file.write(part.value)
            facts = fresh.stat()  # another process may put its own in place before the next line
            os.replace(fresh, path)
        self.note(bucket, name, generation, facts)
        return True


def _parts_of(store: Any, name: str, known: bytes | None) -> Iterator[Any]:
    """The object in tensorstore's results of reading it; the sizes of objects it does not tell."""
    if not name.endswith(LARGE):
        yield store.read(name, if_not_equal=known).result()
        return
    start, state = 0, "value"
    while state == "value":
        of = {"if_not_equal": None if start else known}
        try:
            part = store.read(name, byte_range=slice(start, start + PIECE), **of).result()
        except ValueError as error:  # less than a piece is left
            if "OUT_OF_RANGE" not in str(error):
                raise
            try:
                yield store.read(name, byte_range=slice(start, None), **of).result()
            except ValueError as error:  # nothing is
                if "OUT_OF_RANGE" not in str(error):
                    raise
            return
        yield part
        start, state = start + PIECE, part.state
