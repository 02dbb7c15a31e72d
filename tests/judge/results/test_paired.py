"""Before and after: tests that alarm as often as they say, and changes that read as they are."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, permutation_test

from srpo_jax.judge.results import paired
from srpo_jax.judge.results.paired import (
    compare,
    detectable_change,
    holm,
    mcnemar,
    paired_interval,
    randomisation,
)


def named(rows):
    return {str(i): list(own) for i, own in enumerate(rows)}


@pytest.mark.parametrize("seed", range(50))
def test_mcnemar_is_twice_the_smaller_tail(seed):
    """Of heads and tails over the cases in which the two differ; 1 where they differ in none."""
    one, other = (int(n) for n in np.random.default_rng(seed).integers(0, 30, 2))
    tail = sum(math.comb(one + other, i) for i in range(min(one, other) + 1)) / 2 ** (one + other)
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(0, 0) == 1


def test_one_more_of_four_questions_reads_as_what_it_is():
    """+25 points; the interval holds a loss, the p-value is 1, and no change could be found."""
    found = compare(named([[1], [0], [0], [0]]), named([[1], [1], [0], [0]]))
    assert (found.before, found.after, found.change) == (25, 50, 25)
    assert (found.gained, found.lost, found.questions) == (1, 0, 4)
    assert found.low < -25 and found.p_value == 1 and found.detectable is None


def test_only_questions_of_both_sides_count():
    """One without an answer on either side is in neither rate."""
    before = {"a": [True], "b": [False], "c": [True], "e": []}
    found = compare(before, {"b": [True], "c": [True], "d": [False], "e": [True]})
    assert (found.questions, found.before, found.after) == (2, 50, 100)
    empty = compare({"a": [True]}, {"b": [True]})
    assert empty.questions == 0 and empty.change is None and empty.p_value is None


@pytest.mark.parametrize("seed", range(20))
def test_the_randomisation_test_is_scipys_and_mcnemars(seed):
    """Scipy's permutation test of a mean where differences are shares; McNemar's exact one where
    they are whole."""
    draw = np.random.default_rng(seed)
    own = draw.integers(-3, 4, 12) / 4 + 0.25 * (seed % 2)
    expected = permutation_test(
        (own,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=2**12
    ).pvalue
    assert randomisation(own) == pytest.approx(expected, abs=0.013)
    whole = draw.integers(-1, 2, 40).astype(float)
    gained, lost = int((whole > 0).sum()), int((whole < 0).sum())
    assert randomisation(whole) == pytest.approx(binomtest(gained, gained + lost).pvalue, abs=0.013)


def test_the_interval_of_several_answers_is_scipys_bootstrap():
    """Of the mean of the questions' differences."""
    draw = np.random.default_rng(3)
    before, after = draw.random((2, 80, 5)) < np.array([0.4, 0.6])[:, None, None]
    found = compare(named(before), named(after))
    own = after.mean(1) - before.mean(1)
    expected = bootstrap((own,), np.mean, method="percentile", rng=draw).confidence_interval
    assert found.method == "randomisation" and found.change == pytest.approx(100 * own.mean())
    assert found.low == pytest.approx(100 * expected.low, abs=0.6)
    assert found.high == pytest.approx(100 * expected.high, abs=0.6)


def simulated(draw, questions, samples, shift):
    """Answers before and after to questions of all kinds of difficulty; shift: of the safe ones."""
    share = draw.beta(0.7, 0.7, questions)[:, None]
    before = draw.random((questions, samples)) < share
    return named(before), named(draw.random((questions, samples)) < np.minimum(1, share + shift))


@pytest.mark.parametrize("samples", [1, 3])
def test_false_alarms_are_at_their_level(samples, monkeypatch):
    """Where nothing changed, 5 % is at most what is called a change (a bit less: counts are whole);
    the interval holds 0 nearly as often as it says. A change of 20 points is found. Both hold of
    however many draws a test makes, so that it may be few.
    """
    monkeypatch.setattr(paired, "SIGNS", 999)
    monkeypatch.setattr(paired, "RESAMPLES", 1000)
    draw = np.random.default_rng(samples)
    null = [compare(*simulated(draw, 60, samples, 0)) for _ in range(400)]
    alarms = np.mean([found.p_value < 0.05 for found in null])
    assert 0.015 < alarms < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean([found.low <= 0 <= found.high for found in null]) > 0.92
    real = [compare(*simulated(draw, 60, samples, 0.25)) for _ in range(50)]
    assert np.mean([found.p_value < 0.05 for found in real]) > 4 * alarms


def test_the_paired_interval_covers_a_change():
    """A change of 15 points among 40 questions, in 95 of 100 intervals; with many questions it is
    the textbook's, whose standard error is sqrt(b + c - (b - c)^2 / n) / n.
    """
    draw = np.random.default_rng(0)
    cells = draw.multinomial(40, [0.5, 0.25, 0.10, 0.15], 4000)
    bounds = np.array([paired_interval(*map(int, row)) for row in cells])
    assert 0.94 < np.mean((bounds[:, 0] <= 0.15) & (0.15 <= bounds[:, 1])) < 0.98
    error = 1.96 * math.sqrt(150 + 86 - (150 - 86) ** 2 / 1600) / 1600
    assert paired_interval(794, 150, 86, 570) == pytest.approx(
        (0.04 - error, 0.04 + error), abs=3e-4
    )
    assert paired_interval(5, 0, 0, 0)[0] < 0 < paired_interval(5, 0, 0, 0)[1]


def test_the_detectable_change_is_found_four_times_in_five():
    """Drawn with that change the test alarms in 80 % of the draws; fewer than six questions show
    nothing, and more questions show less.
    """
    assert detectable_change(5) is None and detectable_change(4, 1) is None
    sizes = [detectable_change(n, n // 20) for n in (20, 100, 500, 2000)]
    assert sizes == sorted(sizes, reverse=True)
    change, draw = detectable_change(100, 5), np.random.default_rng(1)
    rest = 1 - (change + 0.05) - 0.05
    cells = draw.multinomial(100, [change + 0.05, 0.05, rest], 3000)
    found = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in cells])
    assert found == pytest.approx(0.8, abs=0.025)


def test_holm_keeps_the_order_and_the_first_times_all():
    """Worked by hand: .01 x 4, .02 x 3, .03 x 2, and never below the one before."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []
