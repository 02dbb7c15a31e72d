"""The supported model families: `model_type` of config.json -> the module that knows it.

A family's module has read_config, Tower, image_layout and positions; qwen2_5_vl.py shows what
each takes and gives.
"""

from __future__ import annotations

import importlib
import pathlib
from types import ModuleType

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig, read_json
from srpo_jax.models.families.internvl import model as internvl
from srpo_jax.models.families.llava import model as llava
from srpo_jax.models.families.qwen2_5_vl import model as qwen2_5_vl
from srpo_jax.models.families.qwen3_vl import model as qwen3_vl
from srpo_jax.models.families.smolvlm import model as smolvlm

FAMILIES: dict[str, ModuleType] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": smolvlm,
    "internvl": internvl,
    "llava": llava,
    "llava_next": llava,
}
# What people try that looks like a supported family and is not.
HINTS = {
    "llava_llama": "take the converted repository (llava-hf/llava-1.5-7b-hf, ...)",
    "llava_mistral": "take the converted repository (llava-hf/llava-v1.6-mistral-7b-hf, ...)",
    "internvl_chat": "take the model's -hf repository (OpenGVLab/InternVL3-8B-hf, "
    "OpenGVLab/InternVL3_5-8B-HF, ...), this one runs code of its own",
    "qwen3_vl_moe": "mixtures of experts are not computed, only the dense Qwen3-VL sizes",
}


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


def make_images(folder, config: ModelConfig, tokenizer):
    """The Pictures of the checkpoint in `folder`. Raises UserError, see the family's module."""
    name = {"idefics3": "smolvlm", "llava_next": "llava", "qwen3_vl": "qwen2_5_vl"}.get(
        config.model_type, config.model_type
    )
    return importlib.import_module(f"srpo_jax.models.families.{name}.images").Images(
        folder, config, tokenizer
    )
