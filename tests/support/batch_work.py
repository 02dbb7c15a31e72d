"""The work of a batch, counted from its arrays alone: what the packing plan's count must equal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.flops import Work, patches_of
from srpo_jax.pack.tree_layout import visible_pairs


def batch_work(batch: Mapping[str, np.ndarray], config: ModelConfig) -> Work:
    """The work of a batch's rows on the host, see pack/packing.py for its arrays [B, ...]."""
    ends = np.asarray(batch["subtree_end"], np.int64)
    index = np.arange(ends.shape[1])
    # Trees stand at the front of a row, and the first token of each sees past its neighbour.
    tokens = np.where(ends > index + 1, ends, 0).max(axis=1)
    pairs = visible_pairs(ends) - int((ends.shape[1] - tokens).sum())
    targets = np.count_nonzero(batch["target_segment"] < batch["seq_segments"].shape[-1])
    features = batch["image_index"].max(axis=1) + 1
    patches = float(patches_of(config.vision, float(features.sum())))
    fields = config.vision.fields
    (segment,) = (f.name for f in fields if f.is_segment and f.name != "window_seg")
    runs = [np.unique(row[row >= 0], return_counts=True)[1] for row in batch[segment]]
    patch_pairs = float(sum(np.square(run.astype(np.int64)).sum() for run in runs))
    return Work(float(tokens.sum()), float(pairs), float(targets), patches, patch_pairs)
