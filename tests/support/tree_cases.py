"""Random trees over a tiny Qwen2.5-VL configuration, for the tests of this folder."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.text_config import TextConfig
from srpo_jax.models.families.qwen2_5_vl import FAMILY
from srpo_jax.models.families.qwen2_5_vl.model import VisionConfig
from srpo_jax.models.inputs import encode_prompt
from srpo_jax.pack.tree import Branch, Tree

IMAGE, VIDEO, VISION_START, VISION_END = 28, 29, 30, 31
CONFIG = ModelConfig(
    model_type="qwen2_5_vl",
    text=TextConfig(
        vocab_size=32,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        mrope_section=(1, 1, 2),
        tie_word_embeddings=False,
    ),
    vision=VisionConfig(
        depth=2,
        hidden_size=32,
        num_heads=2,
        intermediate_size=40,
        patch_size=2,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=8,
        fullatt_block_indexes=(1,),
        in_channels=3,
        out_hidden_size=32,
    ),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    family=FAMILY,
)

# Pictures of different sizes, in patches: 2, 3, 4, 6 and 3 tokens, some cut by the window of 4x4.
GRIDS = ((1, 2, 4), (1, 6, 2), (1, 4, 4), (1, 4, 6), (1, 2, 6))


def make_prompt(rng: np.random.Generator, grids=(), text: int = 3):
    """A prompt with pictures of random pixels and `text` random tokens."""
    tokens, images = [], []
    for grid in grids:
        placeholders = grid[0] * grid[1] * grid[2] // 4
        tokens += [VISION_START] + [IMAGE] * placeholders + [VISION_END]
        size = (grid[0] * grid[1] * grid[2], CONFIG.vision.patch_dim)
        images.append((rng.standard_normal(size).astype(np.float32), grid))
    tokens += list(rng.integers(1, 28, text))
    return encode_prompt(np.asarray(tokens, np.int32), images, CONFIG)


@st.composite
def trees(draw, name="tree", steps=(1, 3), branches=4, length=5, pictures=True):
    """One tree: `steps` to and from, up to `branches` per branch point, of 1 to `length` tokens.

    Only three token ids are drawn, and every other branch begins like the reference path or like
    an earlier branch: shared beginnings, one-token branches, branches that are a beginning of
    another, branch points without a branch or with one verdict only all come up.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grids = draw(st.lists(st.sampled_from(GRIDS), max_size=2)) if pictures else ()
    pieces = tuple(
        rng.integers(1, 4, rng.integers(1, 5)).astype(np.int32)
        for _ in range(draw(st.integers(*steps)) + 1)
    )
    made: list[Branch] = []
    for at in range(len(pieces)):
        for _ in range(draw(st.integers(0, branches))):
            tokens = rng.integers(1, 4, rng.integers(1, length + 1))
            like = draw(st.sampled_from(("nothing", "reference", "sibling")))
            siblings = [b.tokens for b in made if b.at == at]
            if like == "reference":
                begin = np.concatenate(pieces[at:])
            elif like == "sibling" and siblings:
                begin = siblings[rng.integers(len(siblings))]
            else:
                begin = tokens[:0]
            begin = begin[: rng.integers(0, length)]
            tokens = np.concatenate([begin, tokens])[:length].astype(np.int32)
            made.append(Branch(at, tokens, bool(draw(st.booleans()))))
    prompt = make_prompt(rng, grids, int(rng.integers(1, 4)))
    return Tree(name, prompt, pieces, tuple(made))


def forests(max_trees=3, **kwargs):
    """Lists of one to `max_trees` trees with different names."""
    return st.integers(1, max_trees).flatmap(
        lambda n: st.tuples(*(trees(name=f"tree {i}", **kwargs) for i in range(n))).map(list)
    )


def example_tree(seed=0, steps=2, branches=4, step=3, length=6, grids=((1, 4, 4),)):
    """A tree of known shape: at every point half of the branches are safe, all start apart."""
    rng = np.random.default_rng(seed)
    pieces = tuple(rng.integers(1, 10, step).astype(np.int32) for _ in range(steps + 1))
    made = tuple(
        Branch(
            at,
            np.concatenate([[10 + k], rng.integers(1, 10, length - 1)]).astype(np.int32),
            k % 2 == 0,
        )
        for at in range(steps + 1)
        for k in range(branches)
    )
    return Tree(f"example {seed}", make_prompt(rng, grids), pieces, made)


def corner_tree(seed=5, grids=((1, 6, 2),)):
    """Every corner at once. Reference 1 2 | 3 | 4 5, two steps and the reply.

    Point 0: one-token branches, and branches that begin like the reference and go through it.
    Point 1: safe branches only, so no pair. Point 2: siblings that share tokens, one of them a
    beginning of another. The points have 4, 0 and 3 pairs, so weighing by pairs would show.
    """
    pieces = tuple(np.asarray(p, np.int32) for p in ([1, 2], [3], [4, 5]))
    made = [
        (0, [6], True),
        (0, [7], False),
        (0, [1, 2, 3, 4, 6], True),
        (0, [1, 8], False),
        (1, [9], True),
        (1, [3, 4], True),
        (2, [4, 5, 6], True),
        (2, [6, 7, 8], True),
        (2, [6, 7], True),
        (2, [6, 7, 9, 9], False),
    ]
    rng = np.random.default_rng(seed)
    return Tree(
        f"corner {seed}",
        make_prompt(rng, grids),
        pieces,
        tuple(Branch(at, np.asarray(tokens, np.int32), safe) for at, tokens, safe in made),
    )
