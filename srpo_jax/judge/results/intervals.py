"""A rate with its count and its interval: what stands beside every percentage.

Questions are what was drawn, so intervals tell of other questions of the same kind. Several
answers to one question are alike, and count as no more than one draw: with one answer a question an
interval is Wilson's, with several a bootstrap over questions, never over answers. All are of 95 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 10_000
Interval = tuple[float, float]


class Rate(NamedTuple):
    """A share in percent. value: 100 k / n, None where nothing could be counted; k, n: answers;
    low, high: its interval in percent, None with the value; method: how the interval was made.
    """

    value: float | None
    k: int
    n: int
    low: float | None
    high: float | None
    method: Literal["wilson", "bootstrap"]


NOTHING = Rate(None, 0, 0, None, None, "wilson")


def rate(hits: Sequence[Sequence[bool]], seed: int = 0) -> Rate:
    """The share of True in all of `hits`. One inner sequence for each question: whether it holds of
    each of its answers; an empty one is of a question with nothing to count, and is left out.

    One answer each: Wilson's interval. Else the percentiles of RESAMPLES shares over questions that
    are drawn with replacement (Efron and Tibshirani 1993, chapter 13); where all questions are
    alike, which leaves a bootstrap no width, Wilson's for as many draws as there are questions. The
    same hits and seed give the same interval.

    Example: rate([[True], [False], [True], [True]]) is 75 % of 4, from 30.1 to 95.4.
    """
    counts = Counter((sum(map(bool, own)), len(own)) for own in hits if len(own))
    if not counts:
        return NOTHING
    k, n = (sum(pair[i] * times for pair, times in counts.items()) for i in (0, 1))
    questions, share = counts.total(), k / n
    if n > questions and len({own / size for own, size in counts}) > 1:
        low, high = _bootstrap(counts, seed)
        return Rate(100 * share, k, n, 100 * low, 100 * high, "bootstrap")
    low, high = wilson(share, questions)
    return Rate(100 * share, k, n, 100 * low, 100 * high, "wilson")


def _bootstrap(counts: Counter[tuple[int, int]], seed: int) -> Interval:
    """The interval of the share. counts: how many questions have (hits, answers). Questions with
    the same two are not told apart, so a resample is one draw of how many there are of each kind.
    """
    kinds = sorted(counts)
    each = np.array([counts[kind] for kind in kinds], np.float64)
    questions = int(each.sum())
    drawn = np.random.default_rng(seed).multinomial(questions, each / questions, RESAMPLES)
    hits, answers = (drawn @ np.array(side, np.float64) for side in zip(*kinds, strict=True))
    low, high = np.percentile(hits / answers, [2.5, 97.5])
    return float(low), float(high)


def wilson(share: float, count: float) -> Interval:
    """Wilson's (1927) interval for a share that was seen in `count` draws, which need not be whole
    (an effective number of draws). Nothing drawn: (0, 1).
    """
    if count <= 0:
        return 0.0, 1.0
    scale = 1 + Z * Z / count
    middle = (share + Z * Z / (2 * count)) / scale
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / scale
    low = 0.0 if share <= 0 else max(0.0, middle - half)
    return low, (1.0 if share >= 1 else min(1.0, middle + half))
