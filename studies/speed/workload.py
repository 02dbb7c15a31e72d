"""What the benchmarks measure on: random questions of a stated shape, and a small random model.

The default shape is a six-step reasoning path with a picture: 256 image and 64 text tokens, six
steps of about 40 tokens, and eight branches after each of the six prefixes, which get shorter
towards the end of the path (200 tokens down to 40). Token ids, pictures and verdicts are random:
times do not depend on what the tokens say. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.text_config import TextConfig
from srpo_jax.models.families.qwen2_5_vl import FAMILY
from srpo_jax.models.families.qwen2_5_vl.model import VisionConfig
from srpo_jax.models.inputs import EncodedPrompt, encode_prompt
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.pack.tree import Branch, Tree


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one question. Branches at point i of `steps` are first .. last tokens long, linear
    in i, each +- `jitter`; every second one shares its first `shared` tokens with the one before.
    """

    image_tokens: int = 256
    prompt_tokens: int = 64  # text around the picture, its two markers included
    steps: int = 6  # pieces of the reference path = branch points
    branches: int = 8  # K, at every branch point
    step_tokens: int = 40
    first: int = 200
    last: int = 40
    jitter: float = 0.2
    shared: int = 3


QUICK = Shape(
    image_tokens=16, prompt_tokens=12, steps=3, branches=4, step_tokens=8, first=24, last=10
)


@dataclasses.dataclass(frozen=True)
class Width:
    """Sizes of the model: Qwen2.5-VL's architecture, narrow. merge: patches per image token."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 2
    ffn: int = 1536
    vocab: int = 4096
    vision_hidden: int = 128
    vision_depth: int = 8
    vision_ffn: int = 352
    merge: int = 2


QUICK_WIDTH = Width(
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn=96,
    vocab=256,
    vision_hidden=32,
    vision_depth=2,
    vision_ffn=64,
)
# One block that sees 256 patches, not 1024: its share of the time is about a hundredth.
SMALL_TOWER = dict(vision_hidden=32, vision_depth=1, vision_ffn=64, merge=1)


def model_config(width: Width) -> ModelConfig:
    """Qwen2.5-VL of this width. The last four ids of the vocabulary mark pictures."""
    head = width.hidden // width.heads
    thirds = (head // 2 - 2 * (3 * head // 16), 3 * head // 16, 3 * head // 16)  # as released
    text = TextConfig(
        vocab_size=width.vocab,
        hidden_size=width.hidden,
        num_layers=width.layers,
        num_heads=width.heads,
        num_kv_heads=width.kv_heads,
        head_dim=head,
        intermediate_size=width.ffn,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        mrope_section=thirds,
    )
    depth = width.vision_depth
    vision = VisionConfig(
        depth=depth,
        hidden_size=width.vision_hidden,
        num_heads=width.vision_hidden // 32,
        intermediate_size=width.vision_ffn,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=width.merge,
        window_size=112,
        fullatt_block_indexes=tuple(range(3, depth, 4)) or (depth - 1,),
        in_channels=3,
        out_hidden_size=width.hidden,
    )
    ids = range(width.vocab - 4, width.vocab)
    return ModelConfig("qwen2_5_vl", text, vision, *ids, family=FAMILY)


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Every parameter random, biases and norm scales too: a zero bias would hide a wrong one."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        scale = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        noise = rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(scale + (0.1 if len(x.shape) < 2 else 0.02) * noise)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def random_question(shape: Shape, config: ModelConfig, seed: int = 0, pixels: bool = True) -> Tree:
    """A question of this shape: both verdicts at every branch point, as many of each on average.

    pixels: False leaves the picture's patches zero (for counting tokens).
    """
    rng = np.random.default_rng(seed)
    words = config.image_token_id  # ids below it are text
    around = shape.step_tokens, shape.jitter

    def text(mean: float, jitter: float = 0.0) -> np.ndarray:
        length = max(1, round(mean * rng.uniform(1 - jitter, 1 + jitter)))
        return rng.integers(0, words, length).astype(np.int32)

    # Pixels have a generator of their own: with or without them, the question is the same.
    prompt = _prompt(shape, config, text, np.random.default_rng([seed, 1]) if pixels else None)
    pieces = tuple(text(*around) for _ in range(shape.steps))
    branches: list[Branch] = []
    for at in range(shape.steps):
        mean = np.interp(at, (0, max(1, shape.steps - 1)), (shape.first, shape.last))
        safe = rng.permutation(shape.branches) < rng.binomial(shape.branches - 2, 0.5) + 1
        for k in range(shape.branches):
            tokens = text(mean, shape.jitter)
            if k % 2 and len(tokens) > shape.shared:
                tokens[: shape.shared] = branches[-1].tokens[: shape.shared]
            branches.append(Branch(at, tokens, bool(safe[k])))
    return Tree(f"question {seed}", prompt, pieces, tuple(branches))


def _prompt(shape: Shape, config: ModelConfig, text, rng) -> EncodedPrompt:
    ids = config
    if not shape.image_tokens:
        return encode_prompt(text(shape.prompt_tokens), [], config)
    grid = picture_grid(shape, config)
    size = (grid[1] * grid[2], config.vision.patch_dim)
    patches = rng.standard_normal(size, np.float32) if rng else np.zeros(size, np.float32)
    before = max(1, shape.prompt_tokens // 4)
    tokens = [
        *text(before),
        ids.vision_start_token_id,
        *[ids.image_token_id] * shape.image_tokens,
        ids.vision_end_token_id,
        *text(max(1, shape.prompt_tokens - before - 2)),
    ]
    return encode_prompt(tokens, [(patches, grid)], config)


def picture_grid(shape: Shape, config: ModelConfig) -> tuple[int, int, int]:
    """(1, patch rows, patch columns), as square as the number of image tokens allows."""
    count, merge = shape.image_tokens, config.vision.spatial_merge_size
    rows = next(n for n in range(int(count**0.5), 0, -1) if count % n == 0)
    return 1, rows * merge, count // rows * merge


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """An option per field of a dataclass above, defaults from `cls`; unset ones stay None."""
    for field in dataclasses.fields(cls):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            metavar="N",
            help=f"default {field.default}",
        )


def chosen(args: argparse.Namespace, start: Shape | Width):
    """`start` with the options that were given on the command line."""
    names = [field.name for field in dataclasses.fields(start)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(start, **given)
