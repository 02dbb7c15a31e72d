"""A workdir that lies in a bucket is a folder of this host whose every change is made in the bucket
first. What gives files their names, and what removes them, goes through here: in a folder that
nobody keeps, it is the operating system's call of the same meaning.

As the bucket sees the same changes in the same order, whatever holds for a run that is killed on a
disk (a manifest comes last, say) holds for one whose host is lost.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import Protocol

TEMPORARY = ".tmp-"  # in the name of every temporary file
GONE = b"\x02"  # generation of an object that is not there, as tensorstore has it
PARTIAL = ".partial"  # how the name of a folder ends that is not whole and is not kept


class Swap(Protocol):
    """A small object that several processes read and write, of which one at a time succeeds."""

    def read(self) -> tuple[bytes | None, bytes]:
        """(contents, generation); None of one that is not there. Errors: OSError."""
        ...

    def write(self, data: bytes | None, only_if: bytes) -> bool:
        """Whether it was written (None: removed), as this was still its generation."""
        ...


class Keeper(Protocol):
    """Keeps what lies below a folder somewhere else, too. Paths are those of the folder. Errors of
    all of them: RunFailure or UserError, one line that names the address; then nothing was changed.
    """

    def put(self, path: pathlib.Path, source: pathlib.Path) -> None:
        """Keeps the contents of `source` under the name of `path`."""
        ...

    def make(self, path: pathlib.Path) -> None:
        """Keeps the file `path`. Errors: FileExistsError when one of this name is kept."""
        ...

    def extend(self, path: pathlib.Path) -> None:
        """Keeps what was appended to the file `path` since it was kept."""
        ...

    def remove(self, path: pathlib.Path) -> None:
        """Keeps the file no more."""
        ...

    def names(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """What is kept below a folder by this process."""
        ...

    def look(self, folder: pathlib.Path) -> None:
        """Brings what others have made or removed below `folder`, and what was left out at the
        beginning."""
        ...

    def swap(self, path: pathlib.Path) -> Swap:
        """The object that stands for the file `path`, which is in the bucket alone."""
        ...

    def address(self, path: pathlib.Path) -> str:
        """The address that stands for `path`."""
        ...


_kept: dict[pathlib.Path, Keeper] = {}


@contextlib.contextmanager
def kept(folder: pathlib.Path, keeper: Keeper) -> Iterator[None]:
    """In a `with`: the keeper keeps the folder."""
    _kept[folder] = keeper
    try:
        yield
    finally:
        del _kept[folder]


def is_kept() -> bool:
    """Whether anything is kept by this process."""
    return bool(_kept)


def kept_at(address: str) -> pathlib.Path | None:
    """The file or folder that stands for an address; None where nobody keeps it."""
    for folder, keeper in _kept.items():
        above = keeper.address(folder)
        if address == above or address.startswith(f"{above}/"):
            return folder / address[len(above) + 1 :]
    return None


def keeper_of(path: str | os.PathLike) -> Keeper | None:
    """Who keeps the file or folder; None for nobody."""
    if not _kept:
        return None
    place = pathlib.Path(os.path.abspath(path))
    for folder, keeper in _kept.items():
        if place.is_relative_to(folder):
            inner = place.relative_to(folder).parts
            unfinished = any(TEMPORARY in part or part.endswith(PARTIAL) for part in inner)
            return None if unfinished else keeper
    return None


def address_of(path: str | os.PathLike) -> str:
    """gs://BUCKET/PATH of what is kept in a bucket; "" for a file or folder of its own."""
    keeper = keeper_of(path)
    return keeper.address(pathlib.Path(path)) if keeper else ""


def place_of(path: str | os.PathLike) -> str:
    """The name of a file or folder that other hosts know, too: its address_of, else its path."""
    return address_of(path) or os.fspath(path)


def extend(path: pathlib.Path) -> None:
    """To be called when lines were appended to a file and it was closed; see Keeper.extend."""
    if keeper := keeper_of(path):
        keeper.extend(path)


def by_address(text: str) -> str:
    """The text with addresses in the place of the folders that are kept for them."""
    for folder, keeper in _kept.items():
        text = text.replace(str(folder), keeper.address(folder))
    return text


def give_name(fresh: pathlib.Path, path: pathlib.Path) -> None:
    """os.replace: the file `fresh` gets the name and the place of `path`; of one that has it, what
    it holds now is kept.
    """
    if keeper := keeper_of(path):
        keeper.put(path, fresh)
    os.replace(fresh, path)


def remove(path: pathlib.Path) -> None:
    """Removes a file if it is there."""
    if keeper := keeper_of(path):
        keeper.remove(path)
    path.unlink(missing_ok=True)


def remove_folder(folder: pathlib.Path, *, first: Collection[str] = ()) -> None:
    """shutil.rmtree. first: names of files that go before the others. Errors: OSError."""
    if keeper := keeper_of(folder):
        for path in sorted(keeper.names(folder), key=lambda path: path.name not in first):
            keeper.remove(path)
    shutil.rmtree(folder)


def look_again(folder: pathlib.Path) -> None:
    """Sees what other processes have made or removed below a folder since the last look; on a disk,
    whoever looks sees it anyway.
    """
    if keeper := keeper_of(folder):
        keeper.look(folder)
