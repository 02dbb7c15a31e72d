"""Model FLOPs of a batch: what the mathematics needs, not what a program does.

A multiplication and an addition are 2. Counted are the matrix products: every kernel times the
tokens that pass it, attention by the query-key pairs that see each other (not T^2), the output head
at the targets only, the vision tower by its patches. Not counted: padding, recomputation
(rematerialisation), masked pairs, element-wise work, the optimizer. This is the numerator of MFU
("model FLOPs utilisation", PaLM, arXiv 2204.02311, appendix B), so a faster program does not change
it. With all parameters trained and short attention it is the usual 6 x parameters x tokens.

Backward of a product y = x W is twice its forward: dx and dW. A frozen kernel has no dW; a tower
with nothing trained in its blocks or before them has no dx either, and is counted forward only.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from srpo_jax.models.blocks.config import ModelConfig, TowerConfig
from srpo_jax.models.blocks.param_paths import by_path

# Leaves that are matrices; the token table is looked up, not multiplied with (the tied head is).
MATRICES = ("kernel", "lora_a", "lora_b")
# What of a tower comes behind its blocks, so that its gradients do not go through them.
BEHIND_BLOCKS = tuple(
    f"vision/{part}/" for part in ("merger", "deepstack", "projector", "post_norm", "image_newline")
)


class Work(NamedTuple):
    """What a batch holds, padding left out. Numbers may be means, hence float.

    pairs: (query, key) of the decoder that see each other. patch_pairs: pairs of patches of the
    same picture (or tile), which see each other where the tower's attention is not windowed.
    """

    tokens: float
    pairs: float
    targets: float
    patches: float
    patch_pairs: float

    def times(self, factor: float) -> Work:
        return Work(*(factor * number for number in self))


class Flops(NamedTuple):
    """Of one step, forward and backward."""

    decoder: float  # matrix products with the layers' kernels
    attention: float  # of the decoder: scores and mixing
    head: float
    vision: float  # all of the tower and its projector

    @property
    def total(self) -> float:
        return sum(self)


def model_flops(
    config: ModelConfig,
    params: Any,
    work: Work,
    *,
    trainable: Collection[str] | None = None,
    adapters: Any = None,
    reference: bool = False,
) -> Flops:
    """FLOPs of one train step. Pure, no arrays are touched: `params` may be abstract.

    trainable: paths of the trained leaves of params and adapters; None: all. adapters: the tree of
    LoRA matrices, which lie at their kernels' paths. reference: a frozen policy is run forward too.
    """
    matrices = _matrices(params)
    frozen = dict(matrices)
    if adapters is not None:
        matrices |= _matrices(adapters)
    trained = set(matrices if trainable is None else trainable)
    text, vision = config.text, config.vision
    decoder = vision_flops = 0.0
    tower = tower_trained(trained)
    for path, size in matrices.items():
        if path.startswith("layers/"):
            decoder += 2 * size * work.tokens * (2 + (path in trained))
        elif path.startswith("vision/"):
            before = tower or path.replace("/fc2/", "/fc1/") in trained - {path}
            if path.startswith("vision/patch_embed/"):
                before = False  # pixels have no gradient
            passes = 1 + (path in trained) + before
            vision_flops += 2 * size * _vision_tokens(path, vision, work.patches) * passes
    attention = 3 * attention_flops(config, work.pairs)
    pixels = vision.attention_flops(work.patches, work.patch_pairs)
    vision_flops += pixels * (3 if tower else 1)
    head_path = "embed/embedding" if text.tie_word_embeddings else "lm_head/kernel"
    head_once = 2 * text.hidden_size * text.vocab_size * work.targets
    head = head_once * (3 if trainable is None or head_path in trained else 2)
    if reference:
        decoder += sum(2 * n * work.tokens for p, n in frozen.items() if p.startswith("layers/"))
        vision_flops += pixels + sum(
            2 * n * _vision_tokens(p, vision, work.patches)
            for p, n in frozen.items()
            if p.startswith("vision/")
        )
        attention += attention_flops(config, work.pairs)
        head += head_once
    return Flops(decoder, attention, head, vision_flops)


def tower_trained(paths: Collection[str]) -> bool:
    """Whether gradients go through the tower's blocks: something in or before them is trained, and
    not only what turns their results into picture features."""
    return any(p.startswith("vision/") and not p.startswith(BEHIND_BLOCKS) for p in paths)


def attention_flops(config: ModelConfig, pairs: float) -> float:
    """Forward, all layers: q k^T and weights v, 2 x head_dim each for every pair and query head."""
    text = config.text
    return 4 * text.num_layers * text.num_heads * text.head_dim * pairs


def features_of(vision: TowerConfig, patches: float) -> float:
    """How many picture features (before a learned newline) the tower makes of so many patches."""
    return patches / vision.patch_unit * vision.unit_features


def patches_of(vision: TowerConfig, features: float) -> float:
    """The inverse of features_of."""
    return features / vision.unit_features * vision.patch_unit


def _matrices(params: Any) -> dict[str, int]:
    """{path: elements} of what tokens are multiplied with."""
    return {
        path: math.prod(leaf.shape)
        for path, leaf in by_path(params).items()
        if path.rsplit("/", 1)[-1] in MATRICES
    }


def _vision_tokens(path: str, vision: TowerConfig, patches: float) -> float:
    """How many vectors pass a kernel of the tower: patches in it, features behind it."""
    if path.startswith(("vision/blocks/", "vision/patch_embed/")):
        return patches
    return features_of(vision, patches)
