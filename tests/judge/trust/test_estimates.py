"""Rates of all cases from labels of a few: right on average, intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.judge.results.intervals import wilson
from srpo_jax.judge.trust.estimates import Estimate, Stratum, estimate
from srpo_jax.judge.trust.statistics import corrected_rate


def test_with_every_case_labelled_the_rates_are_those_of_the_table():
    """Sensitivity 40/50, specificity 130/150, with Wilson's intervals of 50 and 150, as if nothing
    had been sampled; the corrected rate is the one of the labels."""
    found = estimate(Stratum(140, 140, 10 / 140), Stratum(60, 60, 40 / 60))
    for value, count, total in (
        (found.sensitivity, 40, 50),
        (found.specificity, 130, 150),
        (found.corrected, 50, 200),
        (found.observed, 60, 200),
        (found.agreement, 170, 200),
        (found.unsafe_right, 40, 60),
        (found.safe_right, 130, 140),
    ):
        assert value == pytest.approx((count / total, *wilson(count / total, total)))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_judge_that_is_always_right_or_wrong_has_intervals(right):
    """Bounds are within 0 and 1 and hold the value; a judge that is always wrong has no corrected
    rate."""
    found = estimate(Stratum(900, 30, 1 - right), Stratum(100, 30, right))
    assert found.sensitivity.value == found.specificity.value == found.agreement.value == right
    for each in found:
        assert each is None or 0 <= each.low <= each.value <= each.high <= 1
        assert each is None or each.high - each.low > 0
    assert (found.corrected is None) == (right == 0)


def test_what_nobody_labelled_is_not_guessed():
    """Without a label of SAFE verdicts only the judge's rate and its UNSAFE verdicts are known; a
    judge that never says UNSAFE finds none; without any UNSAFE label nothing can be found."""
    found = estimate(Stratum(90, 0, 0.0), Stratum(10, 5, 0.8))
    assert [value is None for value in found] == [False, True, True, True, True, False, True]
    never = estimate(Stratum(100, 50, 0.1), Stratum(0, 0, 0.0))
    assert never.sensitivity.value == 0 and never.specificity.value == 1 and never.corrected is None
    assert never.sensitivity.high == pytest.approx(wilson(0, 5)[1])
    none = estimate(Stratum(90, 20, 0.0), Stratum(10, 10, 0.0))
    assert none.sensitivity is None and none.corrected is None and none.specificity.value == 0.9
    assert set(estimate(Stratum(0, 0, 0.0), Stratum(0, 0, 0.0))) == {None}


def test_a_rare_kind_that_was_not_seen_leaves_the_interval_wide():
    """50 of 950 SAFE verdicts labelled, all right: a miss of one in twenty would have gone unseen,
    and they are many; so the judge may find only half of UNSAFE."""
    found = estimate(Stratum(950, 50, 0.0), Stratum(50, 50, 0.9)).sensitivity
    assert found.value == 1 and 0.4 < found.low < 0.6 and found.high == 1


@pytest.mark.parametrize(
    "rate, sens, spec, labels",
    [(0.3, 0.8, 0.9, 50), (0.05, 0.9, 0.97, 60), (0.5, 0.7, 0.7, 40), (0.3, 0.8, 0.9, 1000)],
)
def test_estimates_are_right_on_average(rate, sens, spec, labels):
    """Over 1,500 draws of 1,000 cases, of which as many SAFE as UNSAFE verdicts are labelled: the
    corrected rate is unbiased, where the labels' own rate is not; all is what it is by the formula
    of Rogan and Gladen; and 95 % intervals hold the truth in at least 92 of 100."""
    draw = np.random.default_rng(0)
    truth = {"corrected": rate, "sensitivity": sens, "specificity": spec}
    held, values, raw = dict.fromkeys(truth, 0), [], []
    repeats = 1500
    for _ in range(repeats):
        unsafe = draw.random(1000) < rate
        says = np.where(unsafe, draw.random(1000) < sens, draw.random(1000) > spec)
        strata, labelled = [], []
        for verdict in (False, True):
            cases = np.flatnonzero(says == verdict)
            drawn = unsafe[draw.permutation(cases)[:labels]]
            strata.append(Stratum(len(cases), len(drawn), drawn.mean()))
            labelled.append(drawn)
        found = estimate(*strata)
        values.append(found.corrected.value)
        raw.append(np.concatenate(labelled).mean())
        again = corrected_rate(
            found.observed.value, found.sensitivity.value, found.specificity.value
        )
        total = sum(s.cases * s.unsafe for s in strata) / 1000
        assert again == pytest.approx(found.corrected.value) == pytest.approx(total)
        for name, value in truth.items():
            interval: Estimate = getattr(found, name)
            held[name] += interval.low <= value <= interval.high
    error = 4 * np.std(values) / repeats**0.5
    assert abs(np.mean(values) - rate) < error
    if labels < 1000 and rate != 0.5:
        assert abs(np.mean(raw) - rate) > 10 * error
    assert min(held.values()) > 0.92 * repeats, held


def test_a_judge_that_tells_nothing_has_no_corrected_rate():
    """The same share of UNSAFE labels whatever the judge says: sensitivity + specificity is 1, up
    to rounding, which must not become a rate.
    """
    for labels in range(3, 60):
        for unsafe in range(1, labels):
            share = unsafe / labels
            for cases in (labels, 7 * labels + 3, 994):
                found = estimate(Stratum(cases, labels, share), Stratum(997, 2 * labels, share))
                assert found.corrected is None
