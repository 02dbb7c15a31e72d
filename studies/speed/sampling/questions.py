"""What studies.speed.sampling samples from: plain numbers, the same for every way and commit."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model and of a question. ends: how many ids end a branch."""

    hidden: int = 512
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    ffn: int = 1536
    vocab: int = 16384
    side: int = 32  # patches of the square picture in each direction; a token is 2 x 2
    text: int = 32  # tokens before the picture, and behind it
    steps: int = 6
    step_tokens: int = 40
    branches: int = 8
    new_tokens: int = 64
    ends: int = 690


QUICK = Sizes(
    hidden=64, layers=1, heads=2, ffn=64, vocab=256, side=4, text=4, steps=2, step_tokens=4,
    branches=2, new_tokens=8, ends=40,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Question:
    """ids: of the prompt, the picture's placeholders among them; patches float32 [p, d]; path: of
    all steps; starts: of every branch, how much of the path it keeps."""

    ids: np.ndarray
    patches: np.ndarray
    grid: tuple[int, int, int]
    path: np.ndarray
    starts: tuple[int, ...]


def marks(sizes: Sizes) -> dict[str, int]:
    """The ids that mark pictures: the last of the vocabulary."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: sizes.vocab - 1 - i for i, name in enumerate(names)}


def ends(sizes: Sizes) -> list[int]:
    """The ids that end a branch."""
    rng = np.random.default_rng(7)
    return sorted(rng.choice(sizes.vocab - 8, sizes.ends, replace=False).tolist())


def questions(sizes: Sizes, count: int, dimension: int) -> list[Question]:
    """`count` questions with patches of this dimension."""
    rng, mark, found = np.random.default_rng(1), marks(sizes), []
    for _ in range(count):
        image = [mark["image_token_id"]] * (sizes.side // 2) ** 2
        words = [rng.integers(0, sizes.vocab - 8, sizes.text).tolist() for _ in range(2)]
        ids = [
            *(words[0] + [mark["vision_start_token_id"]]),
            *(image + [mark["vision_end_token_id"]] + words[1]),
        ]
        path = rng.integers(0, sizes.vocab - 8, (sizes.steps - 1) * sizes.step_tokens)
        found.append(
            Question(
                np.asarray(ids, np.int32),
                rng.standard_normal((sizes.side**2, dimension)).astype(np.float32),
                (1, sizes.side, sizes.side),
                path.astype(np.int32),
                tuple(
                    i * sizes.step_tokens for i in range(sizes.steps) for _ in range(sizes.branches)
                ),
            )
        )
    return found


def serve(call: Callable[[], dict[str, float]]) -> None:
    """Calls once, then once a line of stdin, and prints what each said with its CPU seconds."""
    call()
    print("{}", flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.monotonic()
        told = call()
        spent = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
        print(json.dumps({**told, **spent}), flush=True)
