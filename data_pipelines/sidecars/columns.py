"""Arrays by name in one immutable file: npz, uncompressed and without pickle.

The name of a file ends with the digest of all that decides its contents, which also stands in it:
what belongs to another shard, another version or other settings has another name, and is ignored.
zip keeps a checksum of every array, so that damage is seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.files import read_file, written_whole

SUFFIX = ".npz"
_DIGEST = "digest"  # the array that repeats the digest of the name
Columns = dict[str, np.ndarray]


def column_file(place: pathlib.Path, stem: str, kind: str, about: Any) -> pathlib.Path:
    """PLACE/STEM.KIND-DIGEST.npz. about: all that decides the contents, as JSON."""
    text = json.dumps([kind, about], sort_keys=True)
    return place / f"{stem}.{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{SUFFIX}"


def read_columns(path: pathlib.Path, check: Callable[[Columns], bool]) -> Columns | None:
    """The arrays of a column_file; None when it is missing or damaged, or `check` says that they
    are not what they should be.
    """
    try:
        data = read_file(path)
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
            # Nothing is packed, so nothing comes out that is larger than the file.
            if any(m.compress_type for m in members) or sum(m.file_size for m in members) > len(
                data
            ):
                return None
            found = {
                member.filename.removesuffix(".npy"): np.load(
                    io.BytesIO(file.read(member)), allow_pickle=False
                )
                for member in members
            }
        if found.pop(_DIGEST).tobytes() != _digest_of(path) or not check(found):
            return None
    except (OSError, UserError):
        return None
    except Exception:  # zip and numpy raise many kinds on bytes that are no such file
        return None
    return found


def write_columns(path: pathlib.Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes a column_file, whole or not at all; where nothing can be written, nothing is: it will
    be worked out again.
    """
    digest = np.frombuffer(_digest_of(path), np.uint8)
    with contextlib.suppress(OSError, RunFailure, UserError), written_whole(path) as fresh:
        with open(fresh, "wb") as file:
            np.savez(file, allow_pickle=False, **{_DIGEST: digest}, **columns)
            file.flush()
            os.fsync(file.fileno())


def ragged(parts: list[np.ndarray], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """(the parts in one, int64 [parts] where each ends)."""
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False), ends


def ragged_ok(values: np.ndarray, ends: np.ndarray, count: int) -> bool:
    """Whether `ends` cuts `values` into so many parts."""
    whole = int(ends[-1]) if count else 0
    return (
        ends.shape == (count,)
        and len(values) == whole
        and bool((np.diff(ends, prepend=0) >= 0).all())
    )


def _digest_of(path: pathlib.Path) -> bytes:
    return path.name.removesuffix(SUFFIX).rpartition("-")[2].encode()
