"""Qwen3-VL (dense): vision tower with DeepStack, interleaved M-RoPE, a Qwen3 decoder.

What differs from Qwen2.5-VL on the host: no windows, and a square table of learned positions that
is stretched over each picture's grid. A grid is (1, patch rows, patch columns).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import Reader
from srpo_jax.models.blocks.image_layout import Grid, ImageLayout
from srpo_jax.models.blocks.qwen_positions import merged_rows_and_columns, patch_positions
from srpo_jax.models.blocks.qwen_vit import check_vision_rope
from srpo_jax.models.blocks.text_config import read_text, root_ties
from srpo_jax.models.families.qwen3_vl.tower import VisionConfig


def read_config(where: str, raw: dict[str, Any], family: Family) -> ModelConfig:
    """The model of a parsed config.json; `where` names it in errors (UserError)."""
    root = Reader(where, raw)
    # Other than Qwen2.5-VL, these models tie where the root says so, whatever text_config says.
    text = dataclasses.replace(
        read_text(where, raw, "qwen3"), tie_word_embeddings=root_ties(where, raw)
    )
    if text.rope != "mrope_interleaved":
        raise UserError(f"{where}: rope_scaling must have mrope_section and mrope_interleaved true")
    name = f"{where} (vision_config)"
    vision_raw = root.section("vision_config")
    vision = _read_vision(name, vision_raw)
    out = Reader(name, vision_raw).integer("out_hidden_size")
    if out != text.hidden_size:
        raise UserError(f"{name}: out_hidden_size {out} is not the text's {text.hidden_size}")
    if len(vision.deepstack) > text.num_layers:
        raise UserError(
            f"{name}: deepstack_visual_indexes names {len(vision.deepstack)} blocks, but the "
            f"decoder has {text.num_layers} layers"
        )
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    found = {name: root.token(name, text.vocab_size) for name in ids}
    return ModelConfig(raw["model_type"], text, vision, **found, family=family)


def _read_vision(where: str, raw: dict[str, Any]) -> VisionConfig:
    get = Reader(where, raw)
    get.only("hidden_act", "gelu_pytorch_tanh")
    check_vision_rope(get)
    entries = get.integer("num_position_embeddings")
    side = round(entries**0.5)
    if side * side != entries:
        raise UserError(f"{where}: num_position_embeddings {entries} is not a square number")
    vision = VisionConfig(
        depth=get.integer("depth"),
        hidden_size=get.integer("hidden_size"),
        num_heads=get.integer("num_heads"),
        intermediate_size=get.integer("intermediate_size"),
        patch_size=get.integer("patch_size"),
        temporal_patch_size=get.integer("temporal_patch_size"),
        spatial_merge_size=get.integer("spatial_merge_size"),
        in_channels=get.integer("in_channels"),
        table_side=side,
        deepstack=get.integers("deepstack_visual_indexes"),
    )
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise UserError(
            f"{where}: hidden_size {vision.hidden_size} over {vision.num_heads} heads must give "
            "a head size divisible by 4 (two rotary axes)"
        )
    chosen = vision.deepstack
    if not chosen or list(chosen) != sorted(set(chosen) & set(range(vision.depth))):
        raise UserError(
            f"{where}: deepstack_visual_indexes {list(chosen)} must be ascending numbers of the "
            f"{vision.depth} blocks, at least one"
        )
    return vision


def image_layout(grid: Grid, config: ModelConfig) -> ImageLayout:
    """The layout of one picture. Raises UserError for a video or a grid that does not merge.

    Patches stay in the processor's order: (merged row, merged column, row in it, column in it).
    """
    vision = config.vision
    if grid[0] != 1:
        raise UserError(f"image grid {tuple(grid)} is a video's; only still images are supported")
    _, row, col = merged_rows_and_columns(grid, vision.spatial_merge_size)
    patch_pos = patch_positions(row, col, vision.spatial_merge_size)
    count = len(patch_pos)
    index, weight = table_entries(patch_pos, grid, vision.table_side)
    return ImageLayout(
        order=np.arange(count, dtype=np.int32),
        fields={
            "patch_pos": patch_pos,
            "table_index": index,
            "table_weight": weight,
            "image_seg": np.zeros(count, np.int32),
        },
        token_index=np.arange(len(row), dtype=np.int32),
        features=len(row),
    )


def table_entries(patch_pos: np.ndarray, grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Which entries of a side x side table a patch's learned position mixes, and in what shares.

    The table is stretched over the picture so that their corner entries coincide, and read
    bilinearly. patch_pos int32 [p, 2] -> (index int32 [p, 4], weight float32 [p, 4], sums 1).
    """
    # Patch i of n lies at i (side - 1) / (n - 1) of the table.
    size = np.asarray(grid[1:], np.float32)
    place = patch_pos.astype(np.float32) * np.float32(side - 1) / np.maximum(size - 1, 1)
    low = np.floor(place)
    share = place - low
    taps = np.stack([low, np.minimum(low + 1, side - 1)], axis=-1).astype(np.int32)  # [p, 2, 2]
    shares = np.stack([1 - share, share], axis=-1)
    index = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    weight = shares[:, 0, :, None] * shares[:, 1, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)
