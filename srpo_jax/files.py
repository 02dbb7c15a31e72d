"""Small files: written whole or not at all, and read with errors that name them."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
from typing import Any

from srpo_jax.errors import UserError


def write_text(path: pathlib.Path, text: str) -> None:
    """Through a temporary file and a rename, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id alone: in containers on two hosts it may be the same.
    fresh = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def existing_parent(path: str | os.PathLike) -> pathlib.Path:
    """The nearest place above `path` (or it) that is there."""
    path = pathlib.Path(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object. Errors: UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def read_lines(path: pathlib.Path) -> list[dict]:
    """Lines of a JSONL file; [] without one. A half-written last line is left out."""
    if not path.is_file():
        return []
    rows = []
    # Not splitlines: a text may hold U+2028, which is a line end for that but not for JSONL.
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number} is not JSON") from None
        if isinstance(row, dict):
            rows.append(row)
    return rows


def one_line(error: object) -> str:
    """The text of an exception without line breaks."""
    return " ".join(str(error).split())
