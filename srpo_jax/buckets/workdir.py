"""A workdir in a bucket, gs://BUCKET/PATH: a folder of this host, brought to the state of the
bucket when it is opened, whose every change is made in the bucket first (keepers.py).

    with open_workdir("gs://my-bucket/runs/first") as workdir:
        srpo_jax.train(config, workdir)

Each process has a folder of its own, and whatever two of them share goes through the bucket. It is
a copy: a run goes on on another host with nothing but the address.

    files        are objects of the same names, written when the file gets its name
    ledgers      (FILE.parts/SESSION-NUMBER) are objects that are never written again; a reader puts
                 those of the last session together. A session is begun by its part 0, which has all
                 that was there, when lines were cut off, or when parts are many
    claims       (.claims/) are written and removed by generation, so of several one succeeds
    checkpoints  are in the bucket alone, written in place (train/checkpoint)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from srpo_jax.buckets.copies import Copies
from srpo_jax.buckets.fetch import cache_of
from srpo_jax.buckets.objects import (
    bucket_and_name,
    create,
    is_url,
    names_under,
    open_bucket,
    read,
    write,
)
from srpo_jax.console import say
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.keepers import Swap, kept

CLAIMS = ".claims"  # what lies in a folder of this name is read and written by Swap alone
IN_PLACE = ("checkpoints", "checkpoints-damaged")  # folders that no host has a copy of
WEIGHTS = ".safetensors"
PARTS = ".parts"  # how the folder of a ledger's parts ends
PART = re.compile(r"(\d{6})-(\d{6})")
MOST_PARTS = 200  # of a session, after which the next one begins with all of them in one


@contextlib.contextmanager
def open_workdir(
    spec: str | os.PathLike, *, write: bool = True, weights: bool = True
) -> Iterator[pathlib.Path]:
    """In a `with`: the folder that stands for gs://BUCKET/PATH; of any other workdir the folder
    that it is. write: whether something will be written to it. weights: those of the exports that
    lie in it are fetched, too; of several GB, and only needed by who loads them.

    Errors: UserError for an address that is none, or a bucket that may not be read and written;
    RunFailure for one that does not answer, or that does not keep what a run relies on.
    """
    if not is_url(os.fspath(spec)):
        yield pathlib.Path(spec)
        return
    with _root() as root:
        found = BucketWorkdir(os.fspath(spec), root, write=write, weights=weights)
        if write:
            found.try_place()
        found.open()
        with kept(found.folder, found):
            try:
                yield found.folder
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong before says more
                    found.keep_rest()
                raise
            found.keep_rest()


def home_of(url: str, file: str) -> str:
    """The address above this one if there is an object FILE in it, else this one. Errors: as
    open_workdir.
    """
    above = url.rstrip("/").rpartition("/")[0]
    try:
        bucket, name = bucket_and_name(f"{above}/{file}")
    except UserError:  # of what lies in no folder
        return url
    return url if read(open_bucket(bucket), bucket, name)[0] is None else above


@contextlib.contextmanager
def _root() -> Iterator[pathlib.Path]:
    """A folder of the cache that this process has for itself: the first one that nobody has."""
    above = cache_of("workdirs")
    number = 0
    while True:
        root = above / str(number)
        root.mkdir(parents=True, exist_ok=True)
        with open(root / ".slot", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number += 1
                continue
            except OSError:  # a file system without locks: a folder that nobody had before
                root = above / f"{number}-{secrets.token_hex(8)}"
            yield root
            return


class BucketWorkdir:
    """The keeper (keepers.Keeper) of ROOT/BUCKET/PATH, which is `folder`."""

    def __init__(self, url: str, root: pathlib.Path, *, write: bool = True, weights: bool = True):
        self._write, self._weights = write, weights
        self.bucket, self.name = bucket_and_name(url)
        self._copies = Copies(root)
        self.folder = self._copies.path(self.bucket, self.name).absolute()
        self._store = open_bucket(self.bucket)
        self._ledgers: dict[str, tuple[int, int, int]] = {}  # session, next part, bytes kept

    def try_place(self) -> None:
        """That the bucket keeps what a run relies on. Errors: UserError, RunFailure."""
        name = f"{self.name}/{CLAIMS}/probe-{secrets.token_hex(8)}"
        first = self._make(name, b"first")
        again = create(self._store, self.bucket, name, b"second")
        found, generation = read(self._store, self.bucket, name)
        listed = name in names_under(self.bucket, f"{self.name}/{CLAIMS}/")
        write(self._store, self.bucket, name, None, only_if=first or b"\x03")
        gone = read(self._store, self.bucket, name)[0] is None  # also when that answer was lost
        promises = {
            "of two that make an object only the first one does": first and not again,
            "what was written is there": found == b"first" and generation == first,
            "what was written is listed": listed,
            "an object is removed by its generation": gone,
        }
        for promise, is_kept in promises.items():
            if not is_kept:
                raise RunFailure(
                    f"gs://{self.bucket}/{self.name}: this bucket does not keep what a run relies "
                    f"on: {promise}; docs/places.md says which places do"
                )

    def open(self) -> None:
        """Brings the folder to the state of the bucket."""
        names = self._listed(self.folder)
        if not names and not self._write and not names_under(self.bucket, f"{self.name}/"):
            raise UserError(
                f"{self.address(self.folder)}: there is no object below it, or it may not be "
                "listed from here"
            )
        if not self._weights:
            names = [name for name in names if not name.endswith(WEIGHTS)]
        if names and not self.folder.exists():
            say(f"fetching {self.address(self.folder)} into {self.folder}", to=sys.stderr)
        self._bring(names)
        self.folder.mkdir(parents=True, exist_ok=True)
        known = set(self._copies.known(self.bucket, self.name))
        for path in sorted(self.folder.rglob("*"), reverse=True):  # of a process that was killed
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()
            elif self._name(path) not in known and not self._parts(path):
                path.unlink()

    def look(self, folder: pathlib.Path) -> None:
        """See keepers.Keeper.look: what is new below the folder, and what is gone. What was written
        again is not seen.
        """
        known = set(self._copies.known(self.bucket, self._name(folder)))
        # Also what is listed no more: a list may be empty as it was refused (objects.names_under).
        self._copies.fetch(self.bucket, sorted(known ^ set(self._listed(folder))))

    def put(self, path: pathlib.Path, source: pathlib.Path) -> None:
        """See keepers.Keeper.put."""
        name = self._name(path)
        if self._parts(path):
            data = source.read_bytes()
            self._ledgers[name] = (self._begin_session(path, data), 1, len(data))
            return
        data, generation = source.read_bytes(), b""
        if not path.exists():  # what several processes make alike is written once
            generation = self._make(name, data)
        if not generation:
            generation = write(self._store, self.bucket, name, data)
        self._copies.note(self.bucket, name, generation, source.stat())

    def make(self, path: pathlib.Path) -> None:
        """See keepers.Keeper.make."""
        name = self._name(path)
        generation = self._make(name, path.read_bytes())
        if not generation:
            raise FileExistsError(self.address(path))
        self._copies.note(self.bucket, name, generation, path.stat())

    def extend(self, path: pathlib.Path) -> None:
        """See keepers.Keeper.extend."""
        name, size = self._name(path), path.stat().st_size
        session, number, done = self._ledgers.get(name) or self._go_on(path)
        if size < done:
            self.put(path, path)
            return
        if size == done:
            return
        with open(path, "rb") as file:
            file.seek(done)
            data = file.read()
        while not self._write_part(name, session, number, data):
            number += 1  # another process writes into this ledger, too
        self._ledgers[name] = (session, number + 1, done + len(data))

    def remove(self, path: pathlib.Path) -> None:
        """See keepers.Keeper.remove."""
        parts = path.with_name(path.name + PARTS)
        for each in [path, *(sorted(parts.iterdir()) if parts.is_dir() else ())]:
            name = self._name(each)
            write(self._store, self.bucket, name, None)
            self._copies.remove(self.bucket, name)
        self._ledgers.pop(self._name(path), None)

    def names(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """See keepers.Keeper.names."""
        return [self._path(name) for name in self._listed(folder)]

    def swap(self, path: pathlib.Path) -> Swap:
        """See keepers.Keeper.swap."""
        # Beside the file, so that a round of a run has one and the same, whoever opened what.
        name = f"{self._name(path.parent)}/{CLAIMS}/{path.name}"
        return _Object(self._store, self.bucket, name)

    def address(self, path: pathlib.Path) -> str:
        """See keepers.Keeper.address."""
        return f"gs://{self.bucket}/{self._name(path)}"

    def keep_rest(self) -> None:
        """Keeps what libraries have written past our own files: traces, stacks, points of
        trackers.
        """
        for path in sorted(self.folder.rglob("*")) if self._write else ():
            inner = path.relative_to(self.folder).parts
            ours = any(part.startswith(".") or part.endswith(PARTS) for part in inner)
            if path.is_file() and not ours and not self._parts(path):
                if not self._copies.is_as_noted(self.bucket, self._name(path)):
                    self.put(path, path)

    def _name(self, path: pathlib.Path) -> str:
        inner = pathlib.Path(os.path.abspath(path)).relative_to(self.folder).as_posix()
        return self.name if inner == "." else f"{self.name}/{inner}"

    def _listed(self, folder: pathlib.Path) -> list[str]:
        """The names of what the bucket has below a folder, but for what no host has a copy of."""
        found = names_under(self.bucket, f"{self._name(folder)}/")
        apart = {CLAIMS, *IN_PLACE}
        inner = len(self.name.split("/"))
        return [name for name in found if not apart & set(name.split("/")[inner:-1])]

    def _bring(self, names: list[str]) -> None:
        """Fetches what is listed, and removes the copies of what is gone, or left out; puts
        ledgers together.
        """
        known = self._copies.known(self.bucket, self.name)
        left_out = {name for name in known if name.endswith(WEIGHTS) and not self._weights}
        for name in left_out:
            self._copies.remove(self.bucket, name)
        self._copies.fetch(self.bucket, sorted({*names, *known} - left_out))
        for folder in sorted({path.parent for path in map(self._path, names) if _is_part(path)}):
            path = folder.with_name(folder.name.removesuffix(PARTS))
            parts = self._parts(path)
            text = b"".join(part.read_bytes() for part in parts)
            if not path.is_file() or path.read_bytes() != text:
                path.write_bytes(text)

    def _path(self, name: str) -> pathlib.Path:
        return self._copies.path(self.bucket, name)

    def _parts(self, path: pathlib.Path) -> list[pathlib.Path]:
        """The copies of the parts of a ledger's last session, in order; [] of no ledger."""
        folder = path.with_name(path.name + PARTS)
        if not folder.is_dir():
            return []
        found = sorted(part for part in folder.iterdir() if PART.fullmatch(part.name))
        begun = [part.name[:6] for part in found if int(part.name[7:]) == 0]
        return [part for part in found if begun and part.name[:6] == begun[-1]]

    def _go_on(self, path: pathlib.Path) -> tuple[int, int, int]:
        """(session, number of the next part, bytes of the file that are in parts) of a ledger that
        this process has not written to yet. Others may have, since it was fetched.
        """
        done = sum(part.stat().st_size for part in self._parts(path))
        folder = path.with_name(path.name + PARTS)
        self.look(folder)
        parts = self._parts(path)
        if not parts:
            last = max((int(part.name[:6]) for part in folder.glob("*-*")), default=0)
            return last + 1, 0, 0
        if len(parts) > MOST_PARTS:
            return self._begin_session(path, b"".join(part.read_bytes() for part in parts)), 1, done
        return int(parts[-1].name[:6]), int(parts[-1].name[7:]) + 1, done

    def _begin_session(self, path: pathlib.Path, data: bytes) -> int:
        """Writes all of a ledger into part 0 of a new session; then those before go. Returns the
        session.
        """
        folder = path.with_name(path.name + PARTS)
        before = sorted(folder.iterdir()) if folder.is_dir() else []
        session = 1 + max((int(part.name[:6]) for part in before), default=0)
        while not self._write_part(self._name(path), session, 0, data):
            session += 1
        for part in before:
            self.remove(part)
        return session

    def _write_part(self, name: str, session: int, number: int, data: bytes) -> bool:
        part = f"{name}{PARTS}/{session:06d}-{number:06d}"
        generation = self._make(part, data)
        if not generation:
            return False
        copy = self._path(part)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        self._copies.note(self.bucket, part, generation, copy.stat())
        return True

    def _make(self, name: str, data: bytes) -> bytes:
        """Generation of a new object; b"" when there is another one. An answer that was lost on its
        way lets tensorstore try again, and find our own there.
        """
        generation = create(self._store, self.bucket, name, data)
        if not generation:
            found, there = read(self._store, self.bucket, name)
            generation = there if found == data else b""
        return generation


class _Object:
    """See keepers.Swap."""

    def __init__(self, store: Any, bucket: str, name: str):
        self._of = (store, bucket, name)

    def read(self) -> tuple[bytes | None, bytes]:
        """See keepers.Swap.read."""
        return read(*self._of)

    def write(self, data: bytes | None, only_if: bytes) -> bool:
        """See keepers.Swap.write."""
        return bool(write(*self._of, data, only_if=only_if))


def _is_part(path: pathlib.Path) -> bool:
    return path.parent.name.endswith(PARTS)
