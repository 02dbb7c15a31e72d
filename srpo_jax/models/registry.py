"""The model families: `model_type` of config.json -> the family. The one place that lists them.

A family of your own comes from outside: `model.family` of the config names it, see docs/models.md.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.config.registered import call_factory, find_outside
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import check_values, shown
from srpo_jax.models.blocks.hf_folder import read_config_json
from srpo_jax.models.families import internvl, llava, qwen2_5_vl, qwen3_vl, smolvlm

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen3_vl": qwen3_vl.FAMILY,
    "smolvlm": smolvlm.FAMILY,
    "idefics3": smolvlm.FAMILY,
    "internvl": internvl.FAMILY,
    "llava": llava.FAMILY,
    "llava_next": llava.FAMILY,
}
# What people try that looks like a supported family and is not.
HINTS = {
    "llava_llama": "take the converted repository (llava-hf/llava-1.5-7b-hf, ...)",
    "llava_mistral": "take the converted repository (llava-hf/llava-v1.6-mistral-7b-hf, ...)",
    "internvl_chat": "take the model's -hf repository (OpenGVLab/InternVL3-8B-hf, "
    "OpenGVLab/InternVL3_5-8B-HF, ...), this one runs code of its own",
    "qwen3_vl_moe": "mixtures of experts are not computed, only the dense Qwen3-VL sizes",
}

FIELD = "model.family"


def load_model_config(directory: str | pathlib.Path, family: str | Family = "") -> ModelConfig:
    """Reads DIRECTORY/config.json. family: one more than the table has, see known_families.

    Raises UserError for a missing or unreadable file, an unsupported model_type, a missing key, or
    a feature that this code does not compute.
    """
    path = pathlib.Path(directory) / "config.json"
    return parse_model_config(str(path), read_config_json(path), family)


def parse_model_config(where: str, raw: dict[str, Any], family: str | Family = "") -> ModelConfig:
    """The model of a parsed config.json; `where` names it in errors, which are as above."""
    known = known_families(family)
    check_values(where, raw)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        hint = HINTS.get(str(model_type), "")
        raise UserError(
            f"{where}: model_type {shown(model_type)} is not supported; supported: "
            f"{', '.join(known)}{hint and '; '}{hint}"
        )
    return known[model_type].read_config(where, raw, known[model_type])


def known_families(family: str | Family = "") -> Mapping[str, Family]:
    """The table above, and one family more: `module:Name`, or what it names; "" for none.

    Name is a Family, or a callable that gives one. Raises UserError if it is neither, or if a model
    type of the family is in the table for another one.
    """
    if not family:
        return FAMILIES
    found = _from_outside(family) if isinstance(family, str) else family
    for name in found.model_types:
        if FAMILIES.get(name, found) is not found:
            raise UserError(
                f"model.family: model_type {name!r} is srpo_jax's own; give your family and its "
                "checkpoints another one"
            )
    return FAMILIES | dict.fromkeys(found.model_types, found)


@functools.cache  # one object, so that the configs of two calls are equal
def _from_outside(spec: str) -> Family:
    found = find_outside(spec, FIELD)
    if not isinstance(found, Family) and callable(found):
        found = call_factory(found, spec, FIELD)
    if not isinstance(found, Family):
        raise UserError(
            f"model.family={spec}: is a {type(found).__name__}; name a "
            "srpo_jax.models.blocks.config.Family, or a callable that gives one"
        )
    return found
