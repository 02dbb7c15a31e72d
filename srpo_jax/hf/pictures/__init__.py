"""The pictures' side of each family: pixels to patches, and what stands for a picture in the text.

Every module has a class `Pictures`, see qwen2_vl.py. The pixel arithmetic is transformers' own,
in its form that needs neither torch nor torchvision.
"""

from __future__ import annotations

import importlib

from srpo_jax.models.config import ModelConfig

# model_type -> module of this folder. Imported when needed: transformers takes seconds.
MODULES = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen2_vl",
    "smolvlm": "smolvlm",
    "idefics3": "smolvlm",
    "internvl": "internvl",
    "llava": "llava",
    "llava_next": "llava",
}


def make_pictures(folder, config: ModelConfig, tokenizer):
    """The Pictures of the checkpoint in `folder`. Raises UserError, see the family's module."""
    name = f"{__name__}.{MODULES[config.model_type]}"
    return importlib.import_module(name).Pictures(folder, config, tokenizer)
