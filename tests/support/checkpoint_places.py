"""Where the tests of checkpoints have them: on a disk, and in a bucket. Each can be looked into,
and damaged, behind the back of whoever uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any, Protocol

from tests.support.bucket_server import Bucket, serving


class CheckpointPlace(Protocol):
    """address: the folder of checkpoints. Names of files begin with their step: "3/SEAL"."""

    address: Any

    def files(self) -> dict[str, int]:
        """Size by name."""
        ...

    def steps(self) -> set[str]:
        """Names of what lies directly in the folder."""
        ...

    def aside(self) -> set[str]:
        """The same of the folder for damaged steps."""
        ...

    def get(self, name: str) -> bytes: ...

    def put(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...

    def copy(self, step: str, to: str) -> None: ...


@dataclasses.dataclass
class OnDisk:
    """A folder."""

    address: pathlib.Path

    def files(self) -> dict[str, int]:
        found = (path for path in self.address.rglob("*") if path.is_file())
        return {path.relative_to(self.address).as_posix(): path.stat().st_size for path in found}

    def steps(self) -> set[str]:
        return {path.name for path in self.address.iterdir()}

    def aside(self) -> set[str]:
        return {path.name for path in self.address.with_name("checkpoints-damaged").iterdir()}

    def get(self, name: str) -> bytes:
        return (self.address / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        """In place where it can be: what is cut and written again is flushed to the disk."""
        path = self.address / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b" if path.exists() else "wb", buffering=0) as file:
            file.write(data)
            file.truncate()

    def remove(self, name: str) -> None:
        os.unlink(self.address / name)

    def copy(self, step: str, to: str) -> None:
        shutil.rmtree(self.address / to, ignore_errors=True)
        shutil.copytree(self.address / step, self.address / to)


@dataclasses.dataclass
class InBucket:
    """gs://bucket-a/run/checkpoints."""

    bucket: Bucket
    address: str = "gs://bucket-a/run/checkpoints"

    def settle(self) -> None:
        """Waits for the threads that a save that failed has left: they go on for a moment."""
        seen = -1
        while seen != self.bucket.asked:
            seen = self.bucket.asked
            time.sleep(0.2)

    def files(self) -> dict[str, int]:
        return {name: len(data) for name, data in self._all().items()}

    def steps(self) -> set[str]:
        return {name.split("/")[0] for name in self._all()}

    def aside(self) -> set[str]:
        return {name.split("/")[0] for name in self._all("-damaged")}

    def get(self, name: str) -> bytes:
        return self._all()[name]

    def put(self, name: str, data: bytes) -> None:
        self.bucket.put(self._name(name), data)

    def remove(self, name: str) -> None:
        self.bucket.remove(self._name(name))

    def copy(self, step: str, to: str) -> None:
        for name in [name for name in self._all() if name.startswith(f"{to}/")]:
            self.remove(name)
        for name, data in self._all().items():
            if name.startswith(f"{step}/"):
                self.put(to + name.removeprefix(step), data)

    def _name(self, name: str) -> str:
        return f"{self.address.removeprefix('gs://')}/{name}"

    def _all(self, ending: str = "") -> dict[str, bytes]:
        under = f"{self.address.removeprefix('gs://')}{ending}/"
        return {name.removeprefix(under): x for name, x in self.bucket.all(under).items()}


@contextlib.contextmanager
def bucket_place() -> Iterator[InBucket]:
    """An empty one, while the `with` lasts."""
    with serving({}) as bucket:
        import gcsfs  # reads the environment
        from etils import epath

        epath.backend.fsspec_backend._get_filesystem.cache_clear()  # they remember another server
        gcsfs.GCSFileSystem.clear_instance_cache()
        place = InBucket(bucket)
        try:
            yield place
        finally:
            place.settle()
