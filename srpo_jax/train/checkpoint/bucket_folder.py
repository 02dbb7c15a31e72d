"""Checkpoints in a bucket, gs://BUCKET/PATH: see folder.py.

A bucket has no folders that could be renamed, but it knows the checksum (CRC32C) of every object,
and what it lists is what is there. So a step is written in place, and counts from the moment when
its marker is there, which is written last and removed first. orbax writes and reads the arrays, by
tensorstore and gcsfs; all else goes by google-cloud-storage, on which gcsfs stands: it tells
checksums, and its errors have kinds.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import io
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath
from orbax.checkpoint.path import atomicity

from srpo_jax.buckets.objects import bucket_and_name
from srpo_jax.errors import UserError
from srpo_jax.train.checkpoint.bucket_failures import told
from srpo_jax.train.checkpoint.file_sums import sum_of

MARKER = atomicity.COMMIT_SUCCESS_FILE  # the name that orbax looks for, in a step and in its items
PATIENCE = 120.0  # seconds for which a request is repeated while the bucket fails
THREADS = 8  # requests at once
PROBE = ".probe"  # an object that is written to see whether one can be
NEEDED = ("gcsfs", "google.cloud.storage", "google_crc32c")
FIELDS = "items(name,size,crc32c),prefixes,nextPageToken"


class BucketFolder:
    """Checksums are CRC32C in base 64, as the bucket tells them, for which no byte is read."""

    in_place = True
    crc32c = True

    def __init__(self, url: str):
        self._bucket, self._name = bucket_and_name(url)
        _check_packages()
        self.path = epath.Path(f"gs://{self._bucket}/{self._name}")

    def __str__(self) -> str:
        return f"gs://{self._bucket}/{self._name}"

    def __truediv__(self, name: str) -> BucketFolder:
        return BucketFolder(f"{self}/{name}")

    def read(self, name: str) -> bytes:
        with self.failures(), _missing_file(f"{self}/{name}"):
            return self._blob(name).download_as_bytes(retry=_retry(), checksum="crc32c")

    def write(self, name: str, data: bytes) -> None:
        with self.failures():
            self._blob(name).upload_from_string(data, retry=_retry(), checksum="crc32c")

    def delete(self, name: str) -> None:
        with self.failures(), contextlib.suppress(FileNotFoundError), _missing_file(name):
            self._blob(name).delete(retry=_retry())

    def is_empty(self) -> bool:
        return not any(True for _ in self._blobs())

    def facts(self) -> dict[str, list | None]:
        """By one listing."""
        return {self._inner(blob): [blob.size, blob.crc32c] for blob in self._blobs()}

    def with_sums(
        self, facts: Mapping[str, list | None], *, crc32c: bool
    ) -> dict[str, list | None]:
        """Reads nothing, unless the step was copied here from a file system."""

        def read(name: str) -> str:
            with self.failures(), _missing_file(f"{self}/{name}"):
                with self._blob(name).open("rb", retry=_retry()) as file:
                    return sum_of(file, crc32c=False)

        if crc32c:
            return dict(facts)
        files = {name: fact[0] for name, fact in facts.items() if fact is not None}
        sums = _at_once(read, files)
        return {name: [files[name], each] for name, each in zip(files, sums, strict=True)}

    def fact_of(self, data: bytes) -> list:
        return [len(data), sum_of(io.BytesIO(data), crc32c=True)]

    def steps(self) -> list[int]:
        """Those that have their marker."""
        begun = self._begun()
        whole = _at_once(lambda step: (self / str(step))._has(MARKER), begun)
        return [step for step, there in zip(begun, whole, strict=True) if there]

    def prepare(self) -> None:
        self.write(PROBE, b"")  # also what may be read may not be written by everybody
        self.delete(PROBE)
        for step in sorted(set(self._begun()) - set(self.steps())):
            self.remove(step)

    def free_bytes(self) -> None:
        return None

    def remove(self, step: int) -> None:
        folder = self / str(step)
        folder.delete(MARKER)
        _at_once(folder.delete, [folder._inner(blob) for blob in folder._blobs(stray=True)])

    def move_aside(self, step: int) -> None:
        """Copies within the bucket, then removes: no byte comes here, and a move that is killed has
        lost nothing.
        """
        above = BucketFolder(f"{self}-damaged")
        taken = above._names_here()
        name = next(n for k in itertools.count() if (n := f"{step}.{k}") not in taken)
        source, target = self / str(step), above / name

        def copy(name: str) -> None:
            token, old, new = "", source._blob(name), target._blob(name)
            while token is not None:  # a large object may take several requests
                token, _, _ = new.rewrite(old, token=token or None, retry=_retry())

        with self.failures():
            _at_once(copy, source.facts())
        self.remove(step)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            found = told(error, str(self))
            if found is None:
                raise
            raise found from None

    def _blob(self, name: str) -> Any:
        return _client().bucket(self._bucket).blob(f"{self._name}/{name}")

    def _has(self, name: str) -> bool:
        with self.failures():
            return self._blob(name).exists(retry=_retry())

    def _blobs(self, *, stray: bool = False) -> Iterator[Any]:
        """What is listed below this folder, without what only stands for a folder unless stray."""
        with self.failures():
            for blob in self._list():
                if stray or not blob.name.endswith("/"):
                    yield blob

    def _list(self, delimiter: str | None = None) -> Any:
        return _client().list_blobs(
            self._bucket,
            prefix=f"{self._name}/",
            delimiter=delimiter,
            fields=FIELDS,
            retry=_retry(),
        )

    def _inner(self, blob: Any) -> str:
        return blob.name.removeprefix(f"{self._name}/")

    def _names_here(self) -> set[str]:
        """Names of what would be its subfolders."""
        with self.failures():
            listed = self._list(delimiter="/")
            for _ in listed:
                pass
            return {each.removeprefix(f"{self._name}/").rstrip("/") for each in listed.prefixes}

    def _begun(self) -> list[int]:
        """All steps of which there is anything, oldest first."""
        names = self._names_here()
        return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


@contextlib.contextmanager
def _missing_file(name: str) -> Iterator[None]:
    from google.cloud.exceptions import NotFound

    try:
        yield
    except NotFound:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None


def _check_packages() -> None:
    """Errors: UserError."""
    for name in NEEDED:
        try:
            missing = importlib.util.find_spec(name) is None
        except ModuleNotFoundError:  # of what is above it
            missing = True
        if missing:
            raise UserError(
                f"checkpoints in a bucket need the package {name}: pip install 'srpo_jax[gcs]'"
            )


def _client() -> Any:
    return _client_for(os.environ.get("STORAGE_EMULATOR_HOST", ""))


@functools.cache
def _client_for(_: str) -> Any:
    import fsspec.config
    from google.cloud import storage

    # gcsfs, which orbax uses, would not look again at what it has listed once; but tensorstore
    # writes there too, and so do other hosts.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    for name in ("absl", "gcsfs", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_traceback)
    drop_late_answers()
    return storage.Client()


@functools.cache
def drop_late_answers() -> None:
    """When one part of a save fails, the others are not waited for, and tensorstore has a traceback
    for each answer that comes to them afterwards.
    """
    before = sys.unraisablehook

    def tell(caught: Any) -> None:
        if str(caught.exc_value) != "Event loop is closed":
            before(caught)

    sys.unraisablehook = tell


def _is_no_traceback(record: logging.LogRecord) -> bool:
    """Not of orbax and gcsfs: whatever fails comes out of a call too, and is told in a line. Nor of
    the parts of a save that nobody waits for when another one has failed.
    """
    left = record.name == "asyncio" and "exception was never retrieved" in record.getMessage()
    theirs = "orbax" in record.pathname or "gcsfs" in record.pathname
    return not (record.exc_info and (left or theirs))


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(PATIENCE)


def _at_once(do: Any, items: Iterable[Any]) -> list[Any]:
    """What `do` gives for each, in their order."""
    with ThreadPoolExecutor(THREADS, "bucket") as threads:
        return list(threads.map(do, items))
