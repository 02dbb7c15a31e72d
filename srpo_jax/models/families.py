"""The supported model families: `model_type` of config.json -> the module that knows it.

A family's module has read_config, Tower, picture_layout and positions; qwen2_5_vl.py shows what
each takes and gives.
"""

from __future__ import annotations

import pathlib
from types import ModuleType

from srpo_jax.errors import UserError
from srpo_jax.models import qwen2_5_vl
from srpo_jax.models.config import ModelConfig, read_json

FAMILIES: dict[str, ModuleType] = {
    "qwen2_5_vl": qwen2_5_vl,
}
# What people try that looks like a supported family and is not.
HINTS = {}


def family(config: ModelConfig) -> ModuleType:
    """The module of a model's family."""
    return FAMILIES[config.model_type]


def load_model_config(directory: str | pathlib.Path) -> ModelConfig:
    """Reads DIRECTORY/config.json.

    Raises UserError for a missing or unreadable file, an unsupported model_type, a missing key, or
    a feature that this code does not compute.
    """
    path = pathlib.Path(directory) / "config.json"
    raw = read_json(path)
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        hint = HINTS.get(model_type, "")
        raise UserError(
            f"{path}: model_type {model_type!r} is not supported; supported: "
            f"{', '.join(FAMILIES)}{hint and '; '}{hint}"
        )
    return FAMILIES[model_type].read_config(str(path), raw)
