"""Statistics on judges: the numbers of the literature, and those of other people's libraries."""

from __future__ import annotations

import math
from collections import Counter

import krippendorff
import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import cohen_kappa_score, roc_auc_score, roc_curve

from srpo_jax.judge.trust.statistics import (
    alpha,
    auroc,
    best_threshold,
    corrected_rate,
    kappa,
    roc,
)

TABLES = range(200)
NAMES = ("SAFE", "UNSAFE", "ERROR")


def test_known_values():
    """Kappa .6, and 0 where one side says one thing; alpha with a unit that only one rated;
    the corrected rate, which stays within 0 and 1."""
    assert kappa(Counter(zip("SSSUUUSSUU", "SSUUUUSSSU"))) == pytest.approx(0.6)
    assert kappa(Counter(zip("SSSSSSSSSU", "SSSSSSSSSS"))) == pytest.approx(0, abs=1e-12)
    assert kappa(Counter(zip("SS", "SS"))) is None and kappa({}) is None
    assert alpha(["SSS", "SSU", "UUU", "US", "UUS", "SS", "S"]) == pytest.approx(
        0.2857143, abs=1e-7
    )
    assert alpha(["SS", "S"]) is None and alpha([]) is None and alpha(["S", "U"]) is None
    assert corrected_rate(0.30, 0.85, 0.95) == pytest.approx(0.3125)
    assert corrected_rate(0.04, 0.85, 0.95) == 0 and corrected_rate(0.97, 0.85, 0.95) == 1
    assert corrected_rate(0.3, 0.4, 0.6) is None and corrected_rate(0.3, 0.2, 0.6) is None


@pytest.mark.parametrize("seed", TABLES)
def test_kappa_is_that_of_scikit_learn(seed):
    """With and without weights."""
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 80))
    own, theirs = (draw.choice(NAMES, size, p=draw.dirichlet([1, 1, 1])) for _ in range(2))
    weights = draw.uniform(0.1, 5, size)
    for given in (None, weights):
        table: dict[tuple[str, str], float] = {}
        for pair, weight in zip(
            zip(own.tolist(), theirs.tolist()), [1] * size if given is None else given
        ):
            table[pair] = table.get(pair, 0) + weight
        found = kappa(table)
        if len({*own, *theirs}) == 1:
            assert found is None
        else:
            expected = cohen_kappa_score(own, theirs, sample_weight=given)
            assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", TABLES)
def test_alpha_is_that_of_krippendorff(seed):
    """Any number of raters, with gaps. Weights that are whole numbers are so many copies of a unit,
    but for the n - 1 of the formula, as copies are no more units."""
    draw = np.random.default_rng(seed)
    raters, units = int(draw.integers(2, 6)), int(draw.integers(2, 40))
    data = draw.integers(0, 3, (raters, units)).astype(float)
    data[:, draw.random(units) < 0.5] = draw.integers(0, 3)  # some agreement
    data[draw.random(data.shape) < draw.uniform(0, 0.6)] = np.nan
    said = [[None if np.isnan(v) else NAMES[int(v)] for v in unit] for unit in data.T]
    compared = {v for unit in said if len(unit) - unit.count(None) > 1 for v in unit if v}
    found = alpha(said)
    assert alpha(said, [2.5] * units) == pytest.approx(found)
    if len(compared) < 2:
        assert found is None
        return
    expected = krippendorff.alpha(data, level_of_measurement="nominal")
    assert found == pytest.approx(expected, abs=1e-9)
    times = draw.integers(1, 4, units)
    copies = [unit for unit, n in zip(said, times) for _ in range(n)]
    sizes = [len(unit) - unit.count(None) for unit in said]
    kept = [(size, n) for size, n in zip(sizes, times.tolist()) if size > 1]
    values = sum(size * n for size, n in kept)
    scaled = values * len(kept) / sum(n for _, n in kept)
    weighed = (1 - alpha(said, times.tolist())) * scaled / (scaled - 1)
    assert weighed == pytest.approx((1 - alpha(copies)) * values / (values - 1))


@pytest.mark.parametrize("seed", TABLES)
def test_curve_and_area_are_those_of_scikit_learn(seed):
    """With ties and weights: every point of the curve, the area, and without weights the one of the
    rank test; DeLong's variance as written in his paper; the threshold is the best of the curve."""
    draw = np.random.default_rng(seed)
    size = int(draw.integers(4, 120))
    is_unsafe = draw.random(size) < draw.uniform(0.1, 0.9)
    is_unsafe[:2] = True, False
    scores = np.clip(draw.normal(0.3 + 0.3 * is_unsafe, 0.25), 0, 1).round(int(draw.integers(1, 4)))
    weights = draw.uniform(0.1, 5, size)
    for given in (None, weights):
        curve, area = roc(scores, is_unsafe, given), auroc(scores, is_unsafe, given)
        options = {"sample_weight": given, "drop_intermediate": False}
        alarms, found, thresholds = roc_curve(is_unsafe, scores, **options)
        np.testing.assert_allclose(curve.thresholds, thresholds)
        np.testing.assert_allclose(curve.false_alarms, alarms, atol=1e-12)
        np.testing.assert_allclose(curve.found, found, atol=1e-12)
        expected = roc_auc_score(is_unsafe, scores, sample_weight=given)
        assert area[0] == pytest.approx(expected, abs=1e-9)
        best = best_threshold(curve)
        gain = best.sensitivity + best.specificity - 1
        assert gain == pytest.approx((found - alarms).max(), abs=1e-9)
        share = np.ones(size) if given is None else given
        says = scores >= best.value
        assert best.sensitivity == pytest.approx(
            share[is_unsafe & says].sum() / share[is_unsafe].sum()
        )
    highs, lows = scores[is_unsafe], scores[~is_unsafe]
    area, interval = auroc(scores, is_unsafe)
    rank = mannwhitneyu(highs, lows).statistic / (len(highs) * len(lows))
    assert area == pytest.approx(rank, abs=1e-9)
    if min(len(highs), len(lows)) < 2 or area in (0, 1):
        assert interval is None
        return
    kernel = [[float(h > low) + 0.5 * float(h == low) for low in lows] for h in highs]
    variance = np.var(np.mean(kernel, 1), ddof=1) / len(highs)
    variance += np.var(np.mean(kernel, 0), ddof=1) / len(lows)
    ends = [math.log(end / (1 - end)) for end in interval]
    assert sum(ends) / 2 == pytest.approx(math.log(area / (1 - area)))
    half = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    assert (ends[1] - ends[0]) / 2 == pytest.approx(half)


@pytest.mark.parametrize("seed", range(50))
def test_weights_make_no_interval_where_nothing_overlaps(seed):
    """Rounding must not turn 'cannot be told' into a very sure interval: neither where a score
    parts both kinds, nor where all scores are the same.
    """
    draw = np.random.default_rng(seed)
    size = int(draw.integers(4, 30))
    is_unsafe = draw.random(size) < 0.5
    is_unsafe[:4] = True, True, False, False
    weights = draw.choice([10 / 3, 7 / 6, 1.1, 0.3], size)
    scores = draw.uniform(0.0, 0.4, size) + 0.5 * is_unsafe
    assert auroc(scores, is_unsafe, weights) == (1.0, None)
    assert auroc(1 - scores, is_unsafe, weights) == (0.0, None)
    assert auroc(np.full(size, 0.3), is_unsafe, weights) == (pytest.approx(0.5), None)


def test_many_labels_take_little_memory():
    """40,000 labels of each kind: a table of all pairs would have 13 GB."""
    draw = np.random.default_rng(0)
    is_unsafe = np.arange(80_000) % 2 == 0
    area, (low, high) = auroc(draw.normal(is_unsafe, 1.0), is_unsafe)
    assert low < 0.7602 < high and high - low < 0.01 and low < area < high


def test_a_curve_needs_both_kinds():
    assert roc([0.1, 0.2], [True, True]) is None and auroc([], []) is None
