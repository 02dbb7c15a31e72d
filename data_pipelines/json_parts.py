"""Rows of JSON in immutable files: NAME.jsonl and, last, NAME.jsonl.manifest.json.

A file with a manifest is whole and never changes again; one without is not done, and whoever writes
that name again replaces it. So a folder of such files survives a kill at any moment, and can lie in
a bucket, where nothing can be appended to or renamed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import file_sha256, open_file, parse_json, read_file, sync, write_text

SUFFIX = ".jsonl"
MANIFEST_SUFFIX = ".manifest.json"
MAX_MANIFEST = 4096  # bytes


def write_part(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes the rows to `path` (its name ends with .jsonl), a line each, then its manifest."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    text = "".join(lines)
    write_text(path, text, flush=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest = {"count": len(lines), "sha256": digest}
    write_text(manifest_path(path), json.dumps(manifest) + "\n", flush=True)
    sync(path.parent)


def part_done(path: pathlib.Path) -> bool:
    """Whether the part has a manifest, which is written last."""
    return manifest_path(path).is_file()


def parts_of(folder: pathlib.Path, pattern: str = "*") -> list[pathlib.Path]:
    """The parts of a folder that are done, in name order. pattern: of their names."""
    found = sorted(folder.glob(f"{pattern}{SUFFIX}"))
    return [path for path in found if part_done(path)]


def read_part(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a part. Errors: RecordError when it is not what its manifest says."""
    return list(iter_part(path))


def iter_part(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of a part, of which one is in memory at a time; errors as read_part, at once."""
    try:
        if file_sha256(path) != part_sha256(path):
            raise ValueError("its contents do not match the sum in its manifest")
        with open_file(path) as file:
            # Bytes, not text: that may hold U+2028, which is a line end for it but not here.
            for line in file:
                yield parse_json(line)
    except (OSError, UserError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: damaged: {one_line(error, 160)}; remove it and its manifest, and run the "
            "command that wrote it again"
        ) from None


def part_sha256(path: pathlib.Path) -> str:
    """What the manifest of a part says. Errors: those of a file that is missing, or no manifest."""
    return parse_json(read_file(manifest_path(path), MAX_MANIFEST))["sha256"]


def next_number(numbers: Sequence[int]) -> int:
    """The number behind the highest that is taken."""
    return max(numbers, default=-1) + 1


def manifest_path(path: pathlib.Path) -> pathlib.Path:
    """Where the manifest of a file lies: beside it."""
    return path.with_name(path.name + MANIFEST_SUFFIX)
