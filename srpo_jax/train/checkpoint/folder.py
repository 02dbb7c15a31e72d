"""Where checkpoints lie: what is asked of the place, whether it is a folder of this machine's file
system or gs://BUCKET/PATH.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from srpo_jax.buckets.objects import is_url
from srpo_jax.keepers import place_of
from srpo_jax.train.checkpoint.bucket_folder import BucketFolder
from srpo_jax.train.checkpoint.local_folder import LocalFolder

# [size in bytes, checksum] of a file, without a checksum where one must read it for that; None for
# a folder, where there are such things.
Fact = list[Any] | None


class Folder(Protocol):
    """A folder of checkpoints, or one step of it, or one item of a step. In a text it is its
    address. Every method may raise OSError; of a bucket also UserError and RunFailure that name it.
    """

    path: Any  # for orbax, and for who wants the address of a step: path / "3"
    in_place: bool  # a step is written under its own name, and counts when its marker is there
    crc32c: bool  # of which kind its checksums are (file_sums.py); the bucket knows them by itself

    def __truediv__(self, name: str) -> Folder: ...

    def read(self, name: str) -> bytes:
        """The contents of a small file. Errors: FileNotFoundError when there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file; it is on the disk when this returns."""
        ...

    def delete(self, name: str) -> None:
        """Removes a file."""
        ...

    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        ...

    def facts(self) -> dict[str, Fact]:
        """Facts by name of all that is in it, at any depth; a folder's name ends in a slash."""
        ...

    def with_sums(self, facts: Mapping[str, Fact], *, crc32c: bool) -> dict[str, Fact]:
        """The same facts, now with checksums, of this kind; files are read where it needs that."""
        ...

    def fact_of(self, data: bytes) -> Fact:
        """The fact of a file that has these contents."""
        ...

    def steps(self) -> list[int]:
        """The steps in this folder of checkpoints that are all there, oldest first; [] without it.
        Whether they are good, nobody has looked.
        """
        ...

    def prepare(self) -> None:
        """Removes what a run that was killed has left of the step that it was writing, or removing.
        For the one process that writes here. A bucket that takes no changes is told of.
        """
        ...

    def free_bytes(self) -> int | None:
        """The room that there is; None where nobody knows."""
        ...

    def remove(self, step: int) -> None:
        """Removes a step; from its beginning on the step is not there for anybody."""
        ...

    def move_aside(self, step: int) -> None:
        """Moves a step to a folder beside this one, NAME-damaged/STEP.K."""
        ...

    def failures(self) -> AbstractContextManager[None]:
        """In a `with`: what orbax and tensorstore raise when the place fails becomes one of the
        errors above.
        """
        ...


def open_folder(address: str | os.PathLike) -> Folder:
    """The folder, whether or not it is there; of a workdir in a bucket the one in the bucket.

    Errors: UserError for what is no address of a bucket, or when packages for buckets are missing.
    """
    text = place_of(address)
    return BucketFolder(text) if is_url(text) else LocalFolder(pathlib.Path(text).absolute())
