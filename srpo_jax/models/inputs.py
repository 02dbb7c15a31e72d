"""Model inputs, made on the host (numpy): prompts with their pictures, rows, padding.

Patches arrive in the order in which the vision tower reads them, and `image_index` says which of
the pictures' features each placeholder token stands for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.image_layout import TEXT, Grid, ImageLayout

Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PromptOutline:
    """A prompt without pixels: all that the shapes of its pictures decide, see EncodedPrompt.

    grids: of its pictures, in order of appearance. num_patches: of all of them. patch_pairs: pairs
    of patches of the same picture or tile, see flops.Work.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    image_index: np.ndarray
    features: int
    grids: tuple[Grid, ...]
    num_patches: int
    patch_pairs: int


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its pictures: n tokens and p patches of all pictures.

    tokens int32 [n]; positions int32 [3, n] (time, height, width); next_position: the position
    of the first token after the prompt on all three axes.
    image_index int32 [n]: -1 for text, else the feature (of the prompt) that the token shows, or
    -2 for a learned newline. features: how many there are.
    vision: "patches" float32 [p, patch_dim] and the family's per-patch arrays [p, ...]; segment
    ids (`*_seg`) are unique within the prompt. patch_pairs: as in the outline; 0 if not counted.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    image_index: np.ndarray
    features: int
    vision: dict[str, np.ndarray]
    patch_pairs: int = 0

    @property
    def patches(self) -> np.ndarray:
        return self.vision["patches"]

    @property
    def num_patches(self) -> int:
        return len(self.patches)


def no_patches(config: ModelConfig) -> dict[str, np.ndarray]:
    """The `vision` arrays of a prompt without pictures: the right shapes, no entries."""
    vision = config.vision
    fields = {f.name: np.zeros((0, *f.shape), f.dtype) for f in vision.fields}
    return {"patches": np.zeros((0, vision.patch_dim), np.float32), **fields}


def encode_prompt(
    tokens: Sequence[int] | np.ndarray,
    images: Sequence[tuple[np.ndarray, Grid]],
    config: ModelConfig,
) -> EncodedPrompt:
    """Joins token ids, whose image placeholders are already expanded, with their images.

    Args:
        tokens: int [n]. images: (patches float32 [p, patch_dim] in the processor's order, grid)
            in order of appearance.

    Raises UserError when placeholders, grids and patches disagree, the prompt is empty, or it is
    longer than the model's positions.
    """
    outline = outline_prompt(tokens, [grid for _, grid in images], config)
    return add_pixels(outline, [rows for rows, _ in images], config)


def outline_prompt(
    tokens: Sequence[int] | np.ndarray, grids: Sequence[Grid], config: ModelConfig
) -> PromptOutline:
    """The part of `encode_prompt` that needs no pixels; errors as there."""
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 1 or not len(tokens):
        raise UserError("a prompt needs at least one token")
    grids = tuple(tuple(int(x) for x in grid) for grid in grids)
    layouts = [_image_layout(grid, config) for grid in grids]
    token_index = [np.zeros(0, np.int32)]
    features = 0
    for layout in layouts:
        index = layout.token_index
        token_index.append(np.where(index >= 0, index + features, index))
        features += layout.features
    positions, next_position = config.family.positions(tokens, grids, config)
    image_index = np.full(len(tokens), TEXT, np.int32)
    shown = np.concatenate(token_index)
    where = tokens == config.image_token_id
    check_placeholders(int(np.count_nonzero(where)), len(grids), len(shown))
    image_index[where] = shown
    check_length(next_position, config)
    return PromptOutline(
        tokens=tokens,
        positions=positions,
        next_position=next_position,
        image_index=image_index,
        features=features,
        grids=grids,
        num_patches=sum(len(layout.order) for layout in layouts),
        patch_pairs=sum(_patch_pairs(layout, config) for layout in layouts),
    )


def prompt_patches(tokens: Sequence[int], grids: Sequence[Grid], config: ModelConfig) -> int:
    """PromptOutline.num_patches alone; errors of placeholders and grids as there."""
    layouts = [_image_layout(tuple(int(x) for x in grid), config) for grid in grids]
    check_placeholders(
        tokens.count(config.image_token_id), len(grids), sum(len(x.token_index) for x in layouts)
    )
    return sum(len(layout.order) for layout in layouts)


def check_placeholders(found: int, images: int, needed: int) -> None:
    """UserError unless a prompt has as many placeholder tokens as its images need."""
    if found != needed:
        raise UserError(
            f"the prompt has {found} image placeholder tokens but its {images} images need {needed}"
        )


def add_pixels(
    outline: PromptOutline, patches: Sequence[np.ndarray], config: ModelConfig
) -> EncodedPrompt:
    """The prompt with its pictures' patches, float32 [p, patch_dim] each in the processor's order.

    Raises UserError for patches that are not those of the outline's grids.
    """
    parts = [no_patches(config)]
    segments = {f.name: 0 for f in config.vision.fields if f.is_segment}
    for number, (rows, grid) in enumerate(zip(patches, outline.grids, strict=True)):
        layout = _image_layout(grid, config)
        shape = (len(layout.order), config.vision.patch_dim)
        if rows.shape != shape:
            raise UserError(
                f"image {number}: patches have shape {rows.shape}, the grid {grid} needs {shape}"
            )
        part = {"patches": np.asarray(rows, np.float32)[layout.order], **layout.fields}
        for name, used in segments.items():
            part[name] = part[name] + used
            segments[name] = int(part[name].max()) + 1
        parts.append(part)
    return EncodedPrompt(
        tokens=outline.tokens,
        positions=outline.positions,
        next_position=outline.next_position,
        image_index=outline.image_index,
        features=outline.features,
        vision={
            name: np.concatenate([part[name] for part in parts]).astype(empty.dtype)
            for name, empty in parts[0].items()
        },
        patch_pairs=outline.patch_pairs,
    )


@functools.lru_cache(maxsize=128)
def _image_layout(grid: Grid, config: ModelConfig) -> ImageLayout:
    """The family's, kept: most pictures of a data set have one of a few shapes. Read only."""
    return config.family.image_layout(grid, config)


def _patch_pairs(layout: ImageLayout, config: ModelConfig) -> int:
    return int(np.square(np.bincount(layout.fields[config.vision.segment_field])).sum())


def check_length(positions: int, config: ModelConfig) -> None:
    """UserError if a model whose RoPE changes with length gets more positions than it computes."""
    limit = config.text.max_positions
    if limit and positions > limit:
        raise UserError(
            f"{positions} positions are more than the {limit} up to which this model's dynamic "
            "RoPE equals the plain one; shorten the prompt or the replies"
        )


def causal_row(prompt: EncodedPrompt, continuation: Sequence[int] | np.ndarray = ()) -> Inputs:
    """The model inputs of one row, without the B axis: the prompt, then text, plain causal.

    Placeholder ids inside the continuation are text: image positions come from the prompt alone.
    """
    extra = np.asarray(continuation, np.int32).reshape(-1)
    length = len(prompt.tokens) + len(extra)
    after = np.broadcast_to(
        prompt.next_position + np.arange(len(extra), dtype=np.int32), (3, len(extra))
    )
    return {
        "tokens": np.concatenate([prompt.tokens, extra]),
        "positions": np.concatenate([prompt.positions, after], axis=1),
        "subtree_end": np.full(length, length, np.int32),
        "image_index": np.concatenate([prompt.image_index, np.full(len(extra), TEXT, np.int32)]),
        **prompt.vision,
    }


# name: (axis to pad, filling) of the arrays that have one entry per token.
_PER_TOKEN = {"tokens": (0, 0), "positions": (1, 0), "image_index": (0, TEXT)}


def pad_rows(rows: Sequence[Inputs], *, tokens: int, patches: int) -> Inputs:
    """Pads rows to `tokens` tokens and `patches` patches and stacks them on a new first axis.

    A padding token is id 0 at position 0 and sees only itself. Padding patches are zeros of
    segment -1, see nothing and are seen by nothing. `patches` must be a positive multiple of the
    vision tower's patch_unit for the model to accept it, also when no row has an image.

    Raises UserError when a row does not fit: nothing is ever cut.
    """
    for number, row in enumerate(rows):
        for what, size, budget in (
            ("tokens", len(row["tokens"]), tokens),
            ("patches", len(row["patches"]), patches),
        ):
            if size > budget:
                raise UserError(f"row {number} has {size} {what}, more than the {budget} of a row")
    return {
        name: np.stack([_padded(name, row, tokens, patches) for row in rows]) for name in rows[0]
    }


def _padded(name: str, row: Inputs, tokens: int, patches: int) -> np.ndarray:
    values = row[name]
    if name == "subtree_end":
        return np.concatenate([values, np.arange(len(values) + 1, tokens + 1, dtype=np.int32)])
    if name in _PER_TOKEN:
        (axis, filling), length = _PER_TOKEN[name], tokens
    else:
        axis, filling, length = 0, -1 if name.endswith("_seg") else 0, patches
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, length - values.shape[axis])
    return np.pad(values, widths, constant_values=filling)
