"""Rows of JSON in immutable files: NAME.jsonl and, last, NAME.jsonl.manifest.json.

A file with a manifest is whole and never changes again; one without is not done, and whoever writes
that name again replaces it. So a folder of such files survives a kill at any moment, and can lie in
a bucket, where nothing can be appended to or renamed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import parse_json, read_file, sync, write_text

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
    try:
        manifest = parse_json(read_file(manifest_path(path), MAX_MANIFEST))
        data = read_file(path)
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise ValueError("its contents do not match the sum in its manifest")
        # Not splitlines: a text may hold U+2028, which is a line end for that but not here.
        rows = [parse_json(line) for line in data.decode().split("\n")[:-1]]
    except (OSError, UserError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: damaged: {one_line(error, 160)}; remove it and its manifest, and run the "
            "command that wrote it again"
        ) from None
    return rows


def next_number(numbers: Sequence[int]) -> int:
    """The number behind the highest that is taken."""
    return max(numbers, default=-1) + 1


def manifest_path(path: pathlib.Path) -> pathlib.Path:
    """Where the manifest of a file lies: beside it."""
    return path.with_name(path.name + MANIFEST_SUFFIX)
