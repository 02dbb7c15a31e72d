"""Checksums of the files of a checkpoint: SHA-256 in hex where we read them, CRC32C in base 64
where a bucket tells them. A step that was copied from one kind of place to the other keeps its own
kind.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from srpo_jax.errors import UserError

PIECE = 1 << 22  # bytes read at once


def is_crc32c(checksum: str) -> bool:
    """Whether it is of this kind; else it is SHA-256."""
    return len(checksum) == 8


def sum_of(file: Any, *, crc32c: bool) -> str:
    """The checksum of what is left to read. Errors: UserError when the package for it is missing;
    what reading raises.
    """
    if not crc32c:
        return hashlib.file_digest(file, "sha256").hexdigest()
    found = _crc32c()
    while data := file.read(PIECE):
        found.update(data)
    return base64.b64encode(found.digest()).decode()


def _crc32c() -> Any:
    try:
        import google_crc32c  # comes with gcsfs
    except ImportError:
        raise UserError(
            "checkpoints that were written into a bucket need the package google-crc32c: "
            "pip install 'srpo_jax[gcs]'"
        ) from None
    return google_crc32c.Checksum()
