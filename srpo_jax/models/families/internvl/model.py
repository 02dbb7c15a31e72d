"""InternVL3 and InternVL3.5 in the `-hf` layout: InternViT over tiles, a Qwen2 or Qwen3 decoder.

A picture is cut into tiles, and unless it is one tile a thumbnail of it comes last. Every tile is
as many tokens as it has squares of 2 x 2 patches; positions are 1-D. A grid is (number of tiles,).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import Reader
from srpo_jax.models.blocks.image_layout import Grid, ImageLayout
from srpo_jax.models.blocks.text_config import TextConfig, read_text
from srpo_jax.models.blocks.tiled_vit import TileConfig, tile_layout

SHUFFLE = 2  # side of the square of patches that becomes one token: 1 / downsample_ratio


def read_config(where: str, raw: dict[str, Any], family: Family) -> ModelConfig:
    """The model of a parsed config.json; `where` names it in errors (UserError)."""
    root = Reader(where, raw)
    root.only("downsample_ratio", 1 / SHUFFLE)
    root.only("projector_hidden_act", "gelu")
    root.only("vision_feature_layer", -1)
    root.only("vision_feature_select_strategy", "default")
    text = _read_text(where, raw)
    vision = _read_vision(f"{where} (vision_config)", root.section("vision_config"))
    image_token = root.token("image_token_id", text.vocab_size)
    return ModelConfig(raw["model_type"], text, vision, image_token, family=family)


def _read_text(where: str, raw: dict[str, Any]) -> TextConfig:
    root = Reader(where, raw)
    nested = Reader(f"{where} (text_config)", root.section("text_config"))
    kind = nested.only("model_type", "qwen2", "qwen3")
    # transformers 5 writes `tie_word_embeddings: true` into the root of every checkpoint that it
    # saves, also beside an untied head (the key is not in the Hub's file, and true is the class
    # default). It can be believed only where it says false, or text_config has no such key.
    said = root("tie_word_embeddings", default=None)
    tied = nested.flag("tie_word_embeddings", bool(said)) and said is not False
    return dataclasses.replace(read_text(where, raw, kind), tie_word_embeddings=tied)


def _read_vision(where: str, raw: dict[str, Any]) -> TileConfig:
    get = Reader(where, raw)
    for key, value in (
        # The 6B tower of InternVL3-38B and larger normalises queries and keys over all heads.
        ("use_qk_norm", False),
        ("norm_type", "layer_norm"),
        ("attention_bias", True),
        ("use_absolute_position_embeddings", True),
        ("use_mask_token", False),
        ("use_mean_pooling", True),  # true: no norm after the last block
    ):
        get.only(key, value)
    vision = TileConfig(
        depth=get.integer("num_hidden_layers"),
        hidden_size=get.integer("hidden_size"),
        num_heads=get.integer("num_attention_heads"),
        intermediate_size=get.integer("intermediate_size"),
        image_size=get.integer("image_size"),
        patch_size=get.integer("patch_size"),
        activation=get.only("hidden_act", "gelu"),
        eps=get.number("layer_norm_eps"),
        in_channels=get.only("num_channels", 3),
        class_token=True,
        layer_scale=True,
        shuffle=SHUFFLE,
        projector_norm=True,
    )
    if vision.hidden_size % vision.num_heads:
        raise UserError(
            f"{where}: hidden_size {vision.hidden_size} over {vision.num_heads} heads does not "
            "divide"
        )
    if vision.image_size % (vision.patch_size * SHUFFLE):
        raise UserError(
            f"{where}: image_size {vision.image_size} must be a multiple of {SHUFFLE} times "
            f"patch_size {vision.patch_size}"
        )
    return vision


def image_layout(grid: Grid, config: ModelConfig) -> ImageLayout:
    """The layout of one picture: tiles in the processor's order, the thumbnail last, nothing
    reordered. Raises UserError for a grid without tiles."""
    (tiles,) = (int(n) for n in grid)
    if tiles < 1:
        raise UserError(f"a picture of {tiles} tiles: there must be at least one")
    shown = np.arange(tiles * config.vision.tile_features)
    return tile_layout(tiles, shown, config.vision)
