"""A share in percent with its interval: Wilson's, or for several samples of a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.judge.trust.statistics import wilson

DRAWS = 2000


class Rate(NamedTuple):
    """value, low, high: percent, None where nothing was counted. k of n: the hits. method: wilson
    or bootstrap.
    """

    value: float | None
    k: int
    n: int
    low: float | None
    high: float | None
    method: str


def rate(hits: Sequence[Sequence[bool]], seed: int = 0) -> Rate:
    """The share of hits. One inner sequence for each question: its samples. With one sample each
    the interval is Wilson's, else of a bootstrap over questions.
    """
    n, k = sum(map(len, hits)), sum(map(sum, hits))
    if not n:
        return Rate(None, 0, 0, None, None, "wilson")
    if all(len(own) == 1 for own in hits):
        low, high = wilson(k / n, n)
        return Rate(100 * k / n, k, n, 100 * low, 100 * high, "wilson")
    sums = np.asarray([sum(own) for own in hits], np.float64)
    sizes = np.asarray([len(own) for own in hits], np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(hits), (DRAWS, len(hits)))
    shares = 100 * sums[drawn].sum(1) / np.maximum(sizes[drawn].sum(1), 1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Rate(100 * k / n, int(k), n, float(low), float(high), "bootstrap")
