"""Read what is in a checkpoint folder besides weights, offline, and say plainly what failed."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import UserError, one_line

# Without it transformers prints "PyTorch was not found" on import.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def loaded(folder: str | pathlib.Path, what: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    """`load(folder)` without network. Raises UserError that says what could not be loaded."""
    try:
        return load(str(folder), local_files_only=True, **kwargs)
    except Exception as error:  # transformers raises many kinds for a missing or damaged file
        raise UserError(f"{folder}: cannot load the {what}: {one_line(error)[:300]}") from error


def read_config_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in `config.json`. Raises UserError for a missing or unreadable file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; point at a Hugging Face model directory") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as JSON: {reason}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(raw).__name__}")
    return raw


def read_optional_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file that a folder may lack: {} then. UserError if it is no JSON."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({one_line(error)})") from error
    return content if isinstance(content, dict) else {}
