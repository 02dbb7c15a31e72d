"""Host-side facts of the Qwen2.5-VL family: window order, M-RoPE positions, model inputs (numpy).

Everything here depends only on token ids and image grids. It is computed once per example on the
host, so that nothing on the device has a data-dependent shape: patches arrive already in window
order, and `image_index` says which merged patch each placeholder token stands for.

A grid is (frames, patch rows, patch columns), as `image_grid_thw` of the HF processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.config import ModelConfig, VisionConfig

Grid = tuple[int, int, int]
Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageLayout:
    """Where the patches of one image go. n = frames * rows * columns, all int32.

    order [n]: row of the processor's output for each patch in window order.
    patch_pos [n, 2]: (patch row, patch column), in window order.
    window_seg [n], full_seg [n]: ids of the window and of the frame, both from 0.
    merged_index [n / merge^2]: for the j-th placeholder token, its merged patch in window order.
    """

    order: np.ndarray
    patch_pos: np.ndarray
    window_seg: np.ndarray
    full_seg: np.ndarray
    merged_index: np.ndarray


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its images: n tokens and p patches of all images, each in window order.

    tokens int32 [n]; positions int32 [3, n] (time, height, width); next_position: the position
    of the first token after the prompt on all three axes.
    image_index int32 [n]: -1 for text, else the merged patch (of the prompt) that the token shows.
    patches float32 [p, patch_dim]; patch_pos int32 [p, 2]; window_seg, full_seg int32 [p], ids
    unique within the prompt.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    image_index: np.ndarray
    patches: np.ndarray
    patch_pos: np.ndarray
    window_seg: np.ndarray
    full_seg: np.ndarray


def image_layout(grid: Grid, vision: VisionConfig) -> ImageLayout:
    """The layout of one image. Raises UserError for a grid that the merge size does not divide.

    The processor's rows are ordered (frame, merged row, merged column, row in it, column in it).
    Window order is (frame, window row, window column, merged row, merged column, ...); windows at
    the right and bottom edge are smaller when the grid is not a multiple of the window.
    """
    merge = vision.spatial_merge_size
    frames, rows, cols = (int(x) for x in grid)
    if min(frames, rows, cols) < 1 or rows % merge or cols % merge:
        raise UserError(f"image grid {tuple(grid)} must be positive multiples of {merge} patches")
    side = vision.window_size // vision.patch_size // merge  # of a window, in merged patches
    frame, row, col = (
        x.reshape(-1) for x in np.indices((frames, rows // merge, cols // merge), dtype=np.int32)
    )
    windows = [frame, row // side, col // side]
    merged_order = np.lexsort((col, row, *windows[::-1]))  # the last key sorts first
    window_of = np.unique(np.stack(windows), axis=1, return_inverse=True)[1].reshape(-1)
    unit = np.arange(merge * merge)
    order = (merged_order[:, None] * merge * merge + unit).reshape(-1)
    patch_pos = np.stack(
        [
            (row[merged_order, None] * merge + unit // merge).reshape(-1),
            (col[merged_order, None] * merge + unit % merge).reshape(-1),
        ],
        axis=1,
    )
    return ImageLayout(
        order=order.astype(np.int32),
        patch_pos=patch_pos.astype(np.int32),
        window_seg=np.repeat(window_of[merged_order], merge * merge).astype(np.int32),
        full_seg=np.repeat(frame[merged_order], merge * merge).astype(np.int32),
        merged_index=np.argsort(merged_order).astype(np.int32),
    )


def mrope_positions(
    tokens: np.ndarray, grids: Sequence[Grid], config: ModelConfig
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of a prompt: (int32 [3, n], position of the first token after it).

    A text token has time = height = width. The tokens of an image that starts at position c have
    (c + frame, c + merged row, c + merged column); what follows starts at c + max(rows, cols) of
    the merged grid. Equal to transformers' `get_rope_index` for still images.

    Raises UserError when the runs of placeholder tokens do not match the grids one to one. Two
    images need a text token between them (the chat template puts two): transformers would take
    one longer run for a single image.
    """
    tokens = np.asarray(tokens)
    merge = config.vision.spatial_merge_size
    if np.any(tokens == config.video_token_id):
        raise UserError("the prompt holds a video placeholder; only still images are supported")
    starts, ends = _runs(tokens == config.image_token_id)
    if len(starts) != len(grids):
        raise UserError(
            f"the prompt has {len(starts)} runs of image placeholders but {len(grids)} images"
        )
    positions = np.empty((3, len(tokens)), np.int32)
    done, current = 0, 0
    for number, (start, end, grid) in enumerate(zip(starts, ends, grids)):
        merged = (grid[0], grid[1] // merge, grid[2] // merge)
        if end - start != np.prod(merged):
            raise UserError(
                f"image {number} of the prompt has {end - start} placeholder tokens but its grid "
                f"{tuple(int(x) for x in grid)} needs {int(np.prod(merged))}"
            )
        positions[:, done:start] = current + np.arange(start - done)
        current += start - done
        positions[:, start:end] = current + np.indices(merged).reshape(3, -1)
        current += max(merged[1], merged[2])
        done = end
    positions[:, done:] = current + np.arange(len(tokens) - done)
    return positions, int(current + len(tokens) - done)


def encode_prompt(
    tokens: Sequence[int] | np.ndarray,
    images: Sequence[tuple[np.ndarray, Grid]],
    config: ModelConfig,
) -> EncodedPrompt:
    """Joins token ids, whose image placeholders are already expanded, with their images.

    Args:
        tokens: int [n]. images: (patches float32 [rows * cols, patch_dim] in the processor's row
            order, grid) in order of appearance.

    Raises UserError when placeholders, grids and patches disagree, or the prompt is empty.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 1 or not len(tokens):
        raise UserError("a prompt needs at least one token")
    vision = config.vision
    positions, next_position = mrope_positions(tokens, [grid for _, grid in images], config)
    patches, patch_pos = [np.zeros((0, vision.patch_dim), np.float32)], [np.zeros((0, 2), np.int32)]
    window_seg, full_seg = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    merged = [np.zeros(0, np.int32)]
    windows = frames = units = 0
    for number, (rows, grid) in enumerate(images):
        layout = image_layout(grid, vision)
        if rows.shape != (len(layout.order), vision.patch_dim):
            raise UserError(
                f"image {number}: patches have shape {rows.shape}, the grid "
                f"{tuple(int(x) for x in grid)} needs {(len(layout.order), vision.patch_dim)}"
            )
        patches.append(np.asarray(rows, np.float32)[layout.order])
        patch_pos.append(layout.patch_pos)
        window_seg.append(layout.window_seg + windows)
        full_seg.append(layout.full_seg + frames)
        merged.append(layout.merged_index + units)
        windows += int(layout.window_seg.max()) + 1
        frames += int(layout.full_seg.max()) + 1
        units += len(layout.merged_index)
    image_index = np.full(len(tokens), -1, np.int32)
    image_index[tokens == config.image_token_id] = np.concatenate(merged)
    return EncodedPrompt(
        tokens=tokens,
        positions=positions,
        next_position=next_position,
        image_index=image_index,
        patches=np.concatenate(patches),
        patch_pos=np.concatenate(patch_pos),
        window_seg=np.concatenate(window_seg).astype(np.int32),
        full_seg=np.concatenate(full_seg).astype(np.int32),
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
        "image_index": np.concatenate([prompt.image_index, np.full(len(extra), -1, np.int32)]),
        "patches": prompt.patches,
        "patch_pos": prompt.patch_pos,
        "window_seg": prompt.window_seg,
        "full_seg": prompt.full_seg,
    }


def pad_rows(rows: Sequence[Inputs], *, tokens: int, patches: int) -> Inputs:
    """Pads rows to `tokens` tokens and `patches` patches and stacks them on a new first axis.

    A padding token is id 0 at position 0 and sees only itself. Padding patches are zeros of
    segment -1 and see only each other. `patches` must be a positive multiple of merge^2 for the
    model to accept it, also when no row has an image.

    Raises UserError when a row does not fit: nothing is ever cut.
    """
    for number, row in enumerate(rows):
        for what, size, budget in (
            ("tokens", len(row["tokens"]), tokens),
            ("patches", len(row["patches"]), patches),
        ):
            if size > budget:
                raise UserError(f"row {number} has {size} {what}, more than the {budget} of a row")
    # name: (axis to pad, its padded length, filling)
    spec = {
        "tokens": (0, tokens, 0),
        "positions": (1, tokens, 0),
        "image_index": (0, tokens, -1),
        "patches": (0, patches, 0),
        "patch_pos": (0, patches, 0),
        "window_seg": (0, patches, -1),
        "full_seg": (0, patches, -1),
    }
    out: dict[str, list[np.ndarray]] = {name: [] for name in (*spec, "subtree_end")}
    for row in rows:
        for name, (axis, length, value) in spec.items():
            widths = [(0, 0)] * row[name].ndim
            widths[axis] = (0, length - row[name].shape[axis])
            out[name].append(np.pad(row[name], widths, constant_values=value))
        own = row["subtree_end"]
        alone = np.arange(len(own) + 1, tokens + 1, dtype=np.int32)
        out["subtree_end"].append(np.concatenate([own, alone]))
    return {name: np.stack(values) for name, values in out.items()}


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end (exclusive) of every run of True."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
