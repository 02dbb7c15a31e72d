"""What a question costs to explore, in the engine's terms: lengths, steps of a row, prefills.

All of it is invented, to be replaced by yours (--question=...): branches have the lengths of
plan.candidates.Question, each drawn from an exponential distribution with its branch point's mean
and cut at explore.max_new_tokens. Nothing here depends on a chip.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np

from srpo_jax.config.fields import Config
from srpo_jax.inference.engine.engine import enough_rows, slots_for
from srpo_jax.inference.engine.slots import Shape
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.flops import patches_of
from srpo_jax.plan.candidates import Question

QUESTIONS, SEED = 200, 0  # so many are drawn for the means below


class Workload(NamedTuple):
    """Means over questions. tokens: of all branches of a question; steps: of decoding until the
    last branch of a row ends; longest: of its branches."""

    tokens: float
    steps: float
    longest: float


def branch_points(cfg: Config, question: Question) -> int:
    """How many prefixes of the path branches are sampled after."""
    points = 1 if cfg.explore.branch_points == "first" else question.steps
    return min(points, cfg.explore.max_points or points)


def engine_shape(cfg: Config, config: ModelConfig, question: Question, *, rows: int = 0) -> Shape:
    """The engine's shape for such questions, as explore makes it; rows 0: not known yet."""
    path = (question.steps - 1) * question.step_tokens
    tokens = question.image_tokens + question.prompt_tokens + path
    unit = config.vision.patch_unit
    patches = math.ceil(patches_of(config.vision, question.image_tokens) / unit) * unit
    branches = cfg.explore.branches * branch_points(cfg, question)
    slots = min(cfg.explore.slots or slots_for(branches), branches)
    room = -(-tokens // 16) * 16
    most = cfg.explore.max_new_tokens
    return Shape(rows, slots, branches, room, max(patches, unit), most)


def workload(cfg: Config, question: Question, slots: int) -> Workload:
    """The means, over QUESTIONS questions."""
    points = branch_points(cfg, question)
    mean = question.branch_tokens * np.linspace(5 / 3, 1 / 3, question.steps)[:points]
    rng = np.random.default_rng(SEED)
    drawn = rng.exponential(mean[:, None], (QUESTIONS, points, cfg.explore.branches))
    lengths = np.clip(np.ceil(drawn), 1, cfg.explore.max_new_tokens).reshape(QUESTIONS, -1)
    steps = [row_steps(own, slots) for own in lengths]
    return Workload(
        float(lengths.sum(1).mean()), float(np.mean(steps)), float(lengths.max(1).mean())
    )


def row_steps(lengths: np.ndarray, slots: int) -> int:
    """Steps of decoding until all branches [N] have ended: a slot that is done takes the next one.
    The first token of a branch comes with the prefill."""
    ends = [0] * slots
    for length in lengths:
        heapq.heappush(ends, heapq.heappop(ends) + int(length) - 1)
    return max(ends)


class Waiting(NamedTuple):
    """What rows lose to each other. steps: that a row which is done waits for a question;
    prefills: runs of the prefill for each question of a part of the mesh, 1 at best."""

    steps: float
    prefills: float


def waiting(rows: int, parts: int, steps: float) -> Waiting:
    """rows: of all parts together; steps: of a row. A call of decode ends when enough_rows are
    done, which may be of any part; then every part prefills as often as the one with the most."""
    enough = enough_rows(rows)
    rng = np.random.default_rng(SEED)
    shares = rng.multinomial(enough, [1 / parts] * parts, size=1000)
    return Waiting((enough - 1) / 2 * steps / rows, float(shares.max(1).mean()) * parts / enough)
