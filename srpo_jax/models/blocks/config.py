"""What a model is: `ModelConfig`, and the `Family` that says how such models are read and computed.

A family is one object, made in its folder's __init__.py. Every model config carries its family, so
that whoever has a config asks it and looks nothing up. The dataclasses are hashable: a config can
be a static argument of a jitted function.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import numpy as np

from srpo_jax.models.blocks.image_layout import Grid, ImageLayout, Images, PatchField
from srpo_jax.models.blocks.tensor_spec import TensorSpec
from srpo_jax.models.blocks.text_config import TextConfig


class TowerConfig(Protocol):
    """What every family's vision config says of its tower, besides what only the family reads.

    fields: the arrays that the tower reads besides the patches. segment_field: the one of them that
    tells pictures (or tiles) apart. patch_dim: numbers of one flattened patch. patch_unit: the
    patches of a row are a multiple of it. unit_features: features (before a learned newline) that
    the tower makes of so many patches. tile_length: positions of a tile, where each tile is a
    sequence of its own; 0 where the patches of a row are one sequence, cut into segments.
    """

    fields: tuple[PatchField, ...]
    segment_field: str

    @property
    def depth(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def patch_dim(self) -> int: ...
    @property
    def patch_unit(self) -> int: ...
    @property
    def unit_features(self) -> int: ...
    @property
    def tile_length(self) -> int: ...

    def attention_flops(self, patches: float, patch_pairs: float) -> float:
        """FLOPs of scores and mixing, forward, all blocks: what the mathematics needs.

        patch_pairs: pairs of patches of the same picture (or tile).
        """
        ...

    def kernel_flops(self, patches: float, patch_pairs: float, block: int) -> float:
        """The same as computed by a kernel that takes the keys of a query `block` at a time."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One family of models: all that differs from the others, in one place.

    model_types: of config.json, that are of this family.
    read_config(where, raw, family): the ModelConfig of a parsed config.json; `where` names it in
        errors. Raises UserError for a missing key and for what the family does not compute.
    tower(vision config, width of the decoder, dtype, param_dtype, remat, constrain, attend): the
        vision tower; called with the model's inputs it gives (picture features [B, F, D], None or
        those for the first N decoder layers [N, B, F, D]).
    image_layout(grid, config): the layout of one picture. Raises UserError for a grid that is none.
    positions(tokens, grids, config): (positions int32 [3, n] of a prompt's tokens, the position of
        the first token after it). Raises UserError where tokens and grids do not agree.
    images(folder, config, tokenizer): see Images. Raises UserError if the image processor cannot be
        loaded or contradicts config.json.
    tensors(config): every tensor of a checkpoint, under the name that the Hub's files have.
    head: the name of the output head's tensor.
    spellings: (pattern, replacement) that make the Hub's name of another one; the first that fits
        counts.
    in_memory: (start of a Hub's name, what it is in transformers' model); the first counts.
    """

    model_types: tuple[str, ...]
    read_config: Callable[[str, dict[str, Any], Family], ModelConfig]
    tower: type[nn.Module]
    image_layout: Callable[[Grid, ModelConfig], ImageLayout]
    positions: Callable[[np.ndarray, Sequence[Grid], ModelConfig], tuple[np.ndarray, int]]
    images: Callable[[pathlib.Path, ModelConfig, Any], Images]
    tensors: Callable[[ModelConfig], Sequence[TensorSpec]]
    head: str
    spellings: tuple[tuple[str, str], ...] = ()
    in_memory: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One vision-language model: its two towers, the token ids that join them, and its family."""

    model_type: str
    text: TextConfig
    vision: Any  # a TowerConfig, with the fields that its family reads besides
    image_token_id: int
    video_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None
    family: Family = dataclasses.field(kw_only=True, repr=False)
