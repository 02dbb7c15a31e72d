"""Load a part of a checkpoint folder with transformers, offline, and say plainly what failed."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import UserError

# Without it transformers prints "PyTorch was not found" on import.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def loaded(folder: str | pathlib.Path, what: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    """`load(folder)` without network. Raises UserError that says what could not be loaded."""
    try:
        return load(str(folder), local_files_only=True, **kwargs)
    except Exception as error:  # transformers raises many kinds for a missing or damaged file
        raise UserError(f"{folder}: cannot load the {what}: {one_line(error)[:300]}") from error


def read_json(file: pathlib.Path) -> dict:
    """The object in a JSON file, {} if the file is absent. Raises UserError if it is no JSON."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({one_line(error)})") from error
    return content if isinstance(content, dict) else {}


def one_line(error: Exception) -> str:
    """The text of an exception without line breaks."""
    return " ".join(str(error).split())
