"""Measures of agreement and of a yes-no judge: pure functions of counts, labels and scores.

Everything takes weights, for labels that stand for different numbers of cases; without them, or
with equal ones, these are the textbook's. A value is None where it is not defined. Intervals are of
95 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.judge.results.intervals import Interval, Z


def kappa(table: Mapping[tuple[str, str], float]) -> float | None:
    """Cohen's kappa (1960) of two raters, (p_o - p_e) / (1 - p_e), p_e of their own frequencies.

    table: {(what one says, what the other says): how often}. None where p_e is 1.
    """
    total = sum(table.values())
    if not total:
        return None
    one, other = defaultdict(float), defaultdict(float)
    for (a, b), count in table.items():
        one[a] += count / total
        other[b] += count / total
    agreed = sum(count for (a, b), count in table.items() if a == b) / total
    chance = sum(share * other[name] for name, share in one.items() if name in other)
    return None if chance > 1 - 1e-12 else (agreed - chance) / (1 - chance)


def alpha(
    units: Iterable[Sequence[str | None]], weights: Iterable[float] | None = None
) -> float | None:
    """Krippendorff's alpha for names, 1 - D_o / D_e, of any number of raters.

    units: for each thing rated what the raters say, None for a gap; one with fewer than two ratings
    says nothing. weights: of the units; they are scaled to a mean of 1 over those that say
    something, so that equal ones change nothing. None where all say the same, or nobody compares.
    """
    rated = [[value for value in unit if value is not None] for unit in units]
    given = [1.0] * len(rated) if weights is None else list(weights)
    kept = [(unit, w) for unit, w in zip(rated, given, strict=True) if len(unit) > 1 and w > 0]
    scale = len(kept) / sum(w for _, w in kept) if kept else 0.0
    counts: dict[str, float] = defaultdict(float)
    differ = 0.0
    for unit, weight in kept:
        size = len(unit)
        own = {value: unit.count(value) for value in unit}
        pairs = size * size - sum(n * n for n in own.values())  # ordered ones that differ
        differ += scale * weight * pairs / (size - 1)
        for value, n in own.items():
            counts[value] += scale * weight * n
    total = sum(counts.values())
    expected = total * total - sum(n * n for n in counts.values())
    if len(counts) < 2:
        return None
    return 1 - (total - 1) * differ / expected


def corrected_rate(observed: float, sensitivity: float, specificity: float) -> float | None:
    """The rate behind an observed one, (p + spec - 1) / (sens + spec - 1), within 0 and 1 (Rogan
    and Gladen 1978). None where sens + spec <= 1: such a judge tells nothing.
    """
    power = sensitivity + specificity - 1
    if power < 1e-9:  # of a judge that tells nothing, rounding leaves a little
        return None
    return min(1.0, max(0.0, (observed + specificity - 1) / power))


class Roc(NamedTuple):
    """What a threshold on a score would find, from the highest threshold down; the first point is
    that of a threshold above all scores. A case counts as positive where score >= threshold.
    """

    thresholds: np.ndarray  # [n], the first is infinite
    false_alarms: np.ndarray  # [n], share of the negatives, rising
    found: np.ndarray  # [n], share of the positives, rising


def roc(
    scores: Sequence[float], positive: Sequence[bool], weights: Sequence[float] | None = None
) -> Roc | None:
    """The curve of all thresholds that differ. None without both positives and negatives."""
    score, is_positive, weight = _arrays(scores, positive, weights)
    if not weight[is_positive].sum() or not weight[~is_positive].sum():
        return None
    order = np.argsort(-score, kind="stable")
    score, is_positive, weight = score[order], is_positive[order], weight[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # the end of each tie
    found = np.cumsum(weight * is_positive)[last] / weight[is_positive].sum()
    alarms = np.cumsum(weight * ~is_positive)[last] / weight[~is_positive].sum()
    start = np.zeros(1)
    return Roc(np.append(np.inf, score[last]), np.append(start, alarms), np.append(start, found))


class Threshold(NamedTuple):
    """A case counts as positive where score >= value."""

    value: float
    sensitivity: float
    specificity: float


def best_threshold(curve: Roc) -> Threshold:
    """Where sensitivity + specificity is largest (Youden's J, 1950); the highest of equal ones."""
    gain = curve.found[1:] - curve.false_alarms[1:]
    at = 1 + int(np.flatnonzero(gain > gain.max() - 1e-12)[0])
    return Threshold(
        float(curve.thresholds[at]), float(curve.found[at]), 1 - float(curve.false_alarms[at])
    )


def auroc(
    scores: Sequence[float], positive: Sequence[bool], weights: Sequence[float] | None = None
) -> tuple[float, Interval | None] | None:
    """The chance that a positive has a higher score than a negative, ties counting half, and its
    interval: DeLong's variance (1988), on the scale of log-odds.

    None without both kinds. The interval is None with fewer than two of a kind, and where nothing
    overlaps: there the variance is 0, which says nothing about other cases.
    """
    score, is_positive, weight = _arrays(scores, positive, weights)
    highs, lows = score[is_positive], score[~is_positive]
    w_high, w_low = weight[is_positive], weight[~is_positive]
    if not w_high.sum() or not w_low.sum():
        return None
    of_highs, of_lows = _below(highs, lows, w_low), 1 - _below(lows, highs, w_high)
    if of_highs.min() == of_highs.max() and of_highs[0] in (0, 1):  # exactly: nothing overlaps
        return float(of_highs[0]), None
    area = float(of_highs @ w_high / w_high.sum())
    if min(len(highs), len(lows)) < 2:
        return area, None
    variance = _variance(of_highs, area, w_high) + _variance(of_lows, area, w_low)
    if variance < 1e-20:  # what rounding leaves of 0
        return area, None
    middle, half = math.log(area / (1 - area)), Z * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(middle + side * half))) for side in (-1, 1))
    return area, (low, high)


def _below(values: np.ndarray, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each value the weighted share of the others that are below it, equal ones counting half.
    By sorting: a table of all pairs would not fit into memory for many labels.
    """
    order = np.argsort(others, kind="stable")
    others, total = others[order], np.append(0.0, np.cumsum(weights[order]))
    ends = [total[np.searchsorted(others, values, side)] for side in ("left", "right")]
    return (ends[0] + ends[1]) / 2 / total[-1]


def _variance(parts: np.ndarray, mean: float, weights: np.ndarray) -> float:
    """Of the weighted mean of the parts; of equal weights their sample variance / their number."""
    size = len(parts)
    squares = (weights**2 * (parts - mean) ** 2).sum() / weights.sum() ** 2
    return float(squares * size / (size - 1))


def _arrays(
    scores: Sequence[float], positive: Sequence[bool], weights: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    score = np.asarray(scores, np.float64)
    weight = np.ones(len(score)) if weights is None else np.asarray(weights, np.float64)
    return score, np.asarray(positive, bool), weight
