"""Checkpoints in a folder of a file system: see folder.py."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from srpo_jax.files import existing_parent, file_sha256, naming, sync
from srpo_jax.places import clear_moving, is_moving, move_folder
from srpo_jax.train.checkpoint.file_sums import sum_of

UNFINISHED = ".orbax-checkpoint-tmp"  # how the folder of a step ends while it is written
LARGE = 1 << 20  # bytes from which on a file is read in a thread of its own
THREADS = 8  # files that are read at once; hashing lets go of Python's lock


class LocalFolder:
    """A step is written under another name and renamed when it is whole. Checksums are SHA-256."""

    in_place = False
    crc32c = False

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def write(self, name: str, data: bytes) -> None:
        with naming(self.path / name):
            (self.path / name).write_bytes(data)
        sync(self.path / name)

    def delete(self, name: str) -> None:
        (self.path / name).unlink()

    def is_empty(self) -> bool:
        return not any(self.path.iterdir())

    def facts(self) -> dict[str, list | None]:
        found: dict[str, list | None] = {}
        for place, folders, files in os.walk(self.path):
            here = pathlib.Path(place)
            base = here.relative_to(self.path).as_posix() + "/"
            base = "" if base == "./" else base
            found |= {f"{base}{name}/": None for name in folders}
            found |= {base + name: [(here / name).stat().st_size] for name in files}
        return found

    def with_sums(
        self, facts: Mapping[str, list | None], *, crc32c: bool
    ) -> dict[str, list | None]:
        """Small files are not worth a thread."""

        def read(name: str) -> str:
            path = self.path / name
            if not crc32c:
                return file_sha256(path)
            with open(path, "rb") as file:
                return sum_of(file, crc32c=True)

        files = {name: fact[0] for name, fact in facts.items() if fact is not None}
        large = [name for name, size in files.items() if size >= LARGE]
        with ThreadPoolExecutor(THREADS) as threads:
            sums = dict(zip(large, threads.map(read, large), strict=True))
        for name, size in files.items():
            if size < LARGE:
                sums[name] = read(name)
        return {
            name: None if fact is None else [fact[0], sums[name]] for name, fact in facts.items()
        }

    def fact_of(self, data: bytes) -> list:
        return [len(data), sum_of(io.BytesIO(data), crc32c=False)]

    def steps(self) -> list[int]:
        """By the names of subfolders alone. One that is still getting its name is none."""
        if not self.path.is_dir():
            return []
        places = [place for place in self.path.iterdir() if place.is_dir()]
        names = [place.name for place in places if not is_moving(place)]
        return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)

    def prepare(self) -> None:
        for left in self.path.glob(f"*{UNFINISHED}"):
            shutil.rmtree(left)
        clear_moving(self.path, str.isdecimal)

    def free_bytes(self) -> int:
        return shutil.disk_usage(existing_parent(self.path)).free

    def remove(self, step: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path / str(step))

    def move_aside(self, step: int) -> None:
        aside = self.path.with_name(self.path.name + "-damaged")
        aside.mkdir(exist_ok=True)
        for folder in self.path.iterdir():
            if folder.name.isdigit() and int(folder.name) == step:
                copies = sum(1 for _ in aside.glob(f"{step}.*"))
                move_folder(folder, aside / f"{step}.{copies}")

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turns what the storage layer says of a full disk (a ValueError) into OSError ENOSPC."""
        try:
            yield
        except ValueError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self)) from None
