"""Where the patches and tokens of a picture stand in the Qwen families: M-RoPE, merged patches.

numpy only, computed on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.image_layout import Grid


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


def merged_rows_and_columns(grid: Grid, merge: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(frame, row, column) int32 [frames * rows * cols / merge^2] of every merged patch in order.

    Raises UserError for a grid that the merge size does not divide.
    """
    frames, rows, cols = (int(x) for x in grid)
    if min(frames, rows, cols) < 1 or rows % merge or cols % merge:
        raise UserError(f"image grid {tuple(grid)} must be positive multiples of {merge} patches")
    shape = (frames, rows // merge, cols // merge)
    frame, row, col = (x.reshape(-1) for x in np.indices(shape, dtype=np.int32))
    return frame, row, col


def patch_positions(row: np.ndarray, col: np.ndarray, merge: int) -> np.ndarray:
    """int32 [n * merge^2, 2]: (row, column) of every patch of the merged patches at (row, col)."""
    unit = np.arange(merge * merge)
    places = (row[:, None] * merge + unit // merge, col[:, None] * merge + unit % merge)
    return np.stack([place.reshape(-1) for place in places], axis=1).astype(np.int32)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end (exclusive) of every run of True."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
