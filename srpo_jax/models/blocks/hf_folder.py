"""Read what is in a checkpoint folder besides weights, offline, and say plainly what failed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import UserError, one_line
from srpo_jax.files import parse_json

# Without it transformers prints "PyTorch was not found" on import.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

ADAPTERS = "adapter_config.json"  # what peft writes beside adapters
LARGEST_JSON = 32 << 20  # bytes; a tokenizer's settings with thousands of tokens have 1 MB


def loaded(folder: str | pathlib.Path, what: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    """`load(folder)` without network. Raises UserError that says what could not be loaded."""
    try:
        return load(str(folder), local_files_only=True, **kwargs)
    except Exception as error:  # transformers raises many kinds for a missing or damaged file
        raise UserError(f"{folder}: cannot load the {what}: {one_line(error)[:300]}") from error


def read_config_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in `config.json`. Raises UserError for a missing or unreadable file."""
    if not path.is_file():
        if (path.parent / ADAPTERS).is_file():
            raise UserError(
                f"{path.parent}: holds adapters alone ({ADAPTERS}); merge them into their model "
                "first, with peft's merge_and_unload"
            )
        raise UserError(f"{path}: no such file; point at a Hugging Face model directory")
    return parsed_object(path)


def read_optional_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file that a folder may lack: {} then. UserError if it is no JSON."""
    return parsed_object(file) if file.is_file() else {}


def parsed_object(file: pathlib.Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most `largest` bytes. UserError for anything else."""
    try:
        size = file.stat().st_size
        if size > largest:
            raise UserError(f"{file}: {size} bytes are too many; at most {largest} are read")
        raw = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {one_line(error, 200)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: must hold a JSON object, not {type(raw).__name__}")
    return raw
