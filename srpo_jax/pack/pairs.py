"""Which (chosen, rejected) pairs of a question are contrasted, and with what weight.

A pair is a safe and an unsafe branch of the same branch point. Three published readings:

pairing="all"       every safe x unsafe pair; L_exp is the mean over branch points that have a pair
                    of the mean over the point's pairs (in a tree, more pairs cost nothing)
pairing="one"       one pair per branch point, drawn by (seed, epoch): RPO eq. 9, arXiv 2410.10858
pairing="rpo_code"  all pairs of all points pooled, at most `max_pairs` of them drawn by
                    (seed, epoch), equal weights: RPO's code, `ReasonPathsCollator`, where
                    max_group_size=8 (points with many pairs dominate)
"""

from __future__ import annotations

import zlib

import numpy as np

from srpo_jax.pack.tree import Tree

PAIRINGS = ("all", "one", "rpo_code")
BRANCH_POINTS = ("all", "first")

Pair = tuple[int, int, float]


def choose_pairs(
    tree: Tree,
    *,
    pairing: str = "all",
    max_pairs: int = 8,
    branch_points: str = "all",
    odds_from: str = "branch",
    seed: int = 0,
    epoch: int = 0,
) -> list[Pair]:
    """[(index of the chosen branch, index of the rejected branch, weight)], ordered by point.

    The weights sum to 1 if there is any pair. A pure function of its arguments.

    branch_points="first" keeps only branches right after the prompt (whole paths: the ORPO and
    DPO baselines). Pairs of identical branches are left out; so are, with
    odds_from="divergence", pairs of which one branch is a beginning of the other, because
    nothing is left of it after the common tokens. They are left out before weights are made.
    """
    if pairing not in PAIRINGS or branch_points not in BRANCH_POINTS:
        raise ValueError(
            f"pairing {pairing!r} not in {PAIRINGS}, or "
            f"branch_points {branch_points!r} not in {BRANCH_POINTS}"
        )
    points = [0] if branch_points == "first" else range(len(tree.pieces))
    by_point = [found for found in (_pairs_at(tree, at, odds_from) for at in points) if found]
    if not by_point:
        return []
    # crc32, not hash(): the same draw in every process.
    rng = np.random.default_rng([seed, epoch, zlib.crc32(tree.id.encode())])
    if pairing == "rpo_code":
        pool = [pair for pairs in by_point for pair in pairs]
        drawn = sorted(rng.permutation(len(pool))[:max_pairs])
        return [(*pool[i], 1.0 / len(drawn)) for i in drawn]
    if pairing == "one":
        by_point = [[pairs[rng.integers(len(pairs))]] for pairs in by_point]
    return [(*pair, 1.0 / (len(by_point) * len(pairs))) for pairs in by_point for pair in pairs]


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """The number of tokens with which both int arrays begin."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _pairs_at(tree: Tree, at: int, odds_from: str) -> list[tuple[int, int]]:
    here = [k for k, branch in enumerate(tree.branches) if branch.at == at]
    return [
        (c, r)
        for c in here
        if tree.branches[c].safe
        for r in here
        if not tree.branches[r].safe
        if has_two_sides(tree.branches[c].tokens, tree.branches[r].tokens, odds_from)
    ]


def has_two_sides(chosen: np.ndarray, rejected: np.ndarray, odds_from: str) -> bool:
    """Whether the two token arrays make a pair (see choose_pairs)."""
    if odds_from == "divergence":
        return common_prefix(chosen, rejected) < min(len(chosen), len(rejected))
    return not np.array_equal(chosen, rejected)
