"""SmolVLM, SmolVLM2 and Idefics3: a SigLIP tower over square tiles, and a Llama decoder.

A picture is resized to a grid of tiles, and a small copy of the whole picture is the last tile; or
it is one tile. Patches of a tile are shuffled s x s into one feature and pass one linear layer. A
grid is (rows of tiles, columns of tiles), or (0, 0) for a picture that is one tile.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import Reader
from srpo_jax.models.blocks.image_layout import Grid, ImageLayout
from srpo_jax.models.blocks.text_config import read_text, root_ties
from srpo_jax.models.blocks.tiled_vit import TileConfig, tile_layout

# What transformers' SmolVLMConfig and SmolVLMVisionConfig mean by a key that is not in the file
# (those of Idefics3 are equal). The releases leave out what equals these.
CLASS_DEFAULTS = {"image_token_id": 128257, "scale_factor": 2, "tie_word_embeddings": False}
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}

# transformers finds a patch's position by comparing i / side with the borders j / side in float32,
# and for these numbers of patches per side some patches fall into their neighbour's place. No
# release has one of them (26, 27 and 32 are theirs). Larger sides were not looked at.
MISPLACED_SIDES = frozenset({19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62})
LARGEST_SIDE = 64


def read_config(where: str, raw: dict[str, Any], family: Family) -> ModelConfig:
    """The model of a parsed config.json; `where` names it in errors (UserError)."""
    root = Reader(where, raw, CLASS_DEFAULTS)
    Reader(f"{where} (text_config)", root.section("text_config")).only(
        "model_type", "llama", default="llama"
    )
    # These models tie where the root says so, whatever text_config says.
    text = dataclasses.replace(
        read_text(where, raw, "llama"), tie_word_embeddings=root_ties(where, raw)
    )
    vision = _read_vision(
        f"{where} (vision_config)", root.section("vision_config"), root.integer("scale_factor")
    )
    image_token = root.token("image_token_id", text.vocab_size)
    return ModelConfig(raw["model_type"], text, vision, image_token, family=family)


def _read_vision(where: str, raw: dict[str, Any], shuffle: int) -> TileConfig:
    get = Reader(where, raw, VISION_DEFAULTS)
    vision = TileConfig(
        depth=get.integer("num_hidden_layers"),
        hidden_size=get.integer("hidden_size"),
        num_heads=get.integer("num_attention_heads"),
        intermediate_size=get.integer("intermediate_size"),
        image_size=get.integer("image_size"),
        patch_size=get.integer("patch_size"),
        activation=get.only("hidden_act", "gelu_pytorch_tanh"),
        eps=get.number("layer_norm_eps"),
        in_channels=get.only("num_channels", 3),
        post_norm=True,
        shuffle=shuffle,
        projector="linear",
        projector_bias=False,
    )
    if vision.hidden_size % vision.num_heads:
        raise UserError(
            f"{where}: hidden_size {vision.hidden_size} over {vision.num_heads} heads does not "
            "divide"
        )
    side = vision.side
    if not side or side % shuffle:
        raise UserError(
            f"{where}: {side} patches along a tile (image_size {vision.image_size}, patch_size "
            f"{vision.patch_size}) are not a multiple of scale_factor {shuffle}"
        )
    if side in MISPLACED_SIDES or side > LARGEST_SIDE:
        raise UserError(
            f"{where}: {side} patches along a tile are not supported: transformers' rounding gives "
            "some of them another patch's position"
        )
    return vision


def image_layout(grid: Grid, config: ModelConfig) -> ImageLayout:
    """The layout of one picture: tiles by rows, then the whole picture, nothing reordered.

    Raises UserError for a grid that is neither (0, 0) nor positive.
    """
    rows, cols = (int(n) for n in grid)
    if min(rows, cols) < 0 or (rows == 0) != (cols == 0):
        raise UserError(f"tile grid {(rows, cols)} must be (0, 0) or positive")
    tiles = rows * cols + 1
    shown = np.arange(tiles * config.vision.tile_features)
    return tile_layout(tiles, shown, config.vision)
