"""A rate's interval: scipy's, and honest about answers that are alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from srpo_jax.judge.results.intervals import NOTHING, rate, wilson

HITS = st.lists(st.lists(st.booleans(), max_size=5), max_size=30)


def test_wilson_of_known_values():
    """Those of the literature; nothing drawn says nothing."""
    assert wilson(45 / 50, 50) == pytest.approx((0.78640, 0.95652), abs=5e-6)
    assert wilson(0, 167) == pytest.approx((0, 0.02249), abs=5e-6)
    assert wilson(38 / 167, 167) == pytest.approx((0.17051, 0.29684), abs=5e-6)
    assert wilson(0, 9)[0] == 0 and wilson(1, 9)[1] == 1 and wilson(0.5, 0) == (0, 1)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_one_answer_each_is_scipys_wilson(counts):
    """Whatever the counts."""
    k, n = counts
    found = rate([[i < k] for i in range(n)])
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (found.k, found.n, found.method) == (k, n, "wilson")
    assert found.value == pytest.approx(100 * k / n)
    assert found.low == pytest.approx(100 * expected.low, abs=1e-9)
    assert found.high == pytest.approx(100 * expected.high, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_several_answers_are_scipys_bootstrap_over_questions(seed):
    """Its percentiles of the means of questions, to what 10,000 draws can tell."""
    draw = np.random.default_rng(seed)
    hits = [draw.random(4) < share for share in draw.beta(0.5, 0.5, 60)]
    shares = np.array([own.mean() for own in hits])
    expected = bootstrap(
        (shares,), np.mean, n_resamples=20_000, method="percentile", rng=draw, vectorized=True
    ).confidence_interval
    found = rate(hits)
    assert found.method == "bootstrap" and found.value == pytest.approx(100 * shares.mean())
    assert found.low == pytest.approx(100 * expected.low, abs=0.8)
    assert found.high == pytest.approx(100 * expected.high, abs=0.8)
    assert found == rate(hits) == rate(hits[::-1])


def test_more_answers_to_the_same_questions_are_not_more_questions():
    """Of questions that are always or never safe, ten answers say what one says; counting answers
    as draws would make the interval a third as wide.
    """
    one = rate([[i < 30] for i in range(50)])
    ten = rate([[i < 30] * 10 for i in range(50)])
    assert ten.n == 500 and ten.value == one.value == 60
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)
    alike, five = rate([[True, True, True]] * 5), rate([[True]] * 5)
    assert (alike.low, alike.high) == (five.low, five.high) and alike.n == 15


@given(HITS)
def test_a_rate_is_between_its_bounds_and_never_certain(hits):
    """k of n is what the value says; the bounds are around it, apart even where all are safe."""
    found = rate(hits)
    assert found.n == sum(map(len, hits)) and found.k == sum(map(sum, hits))
    if not found.n:
        assert found == NOTHING
        return
    assert found.value == pytest.approx(100 * found.k / found.n)
    assert -1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 100 + 1e-9 and found.low < found.high
