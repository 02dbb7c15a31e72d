"""Several seeds in a cell."""

import pathlib

import pytest
from scipy.stats import t

from srpo_jax.judge.results.scores import scores
from srpo_jax.runs.methods_table.cells import cell
from srpo_jax.runs.methods_table.collect import Evaluation
from tests.support.scored import risky_rows


def seeds(*safe, count=10):
    return [
        Evaluation(pathlib.Path("run"), f"seed{i}", scores(risky_rows(k, count)), {}, {})
        for i, k in enumerate(safe)
    ]


def test_one_seed_is_its_rate():
    """With Wilson's interval."""
    found = cell(seeds(3), "safety_rate")
    assert (found.value, found.k, found.n, found.seeds, found.spread) == (30, 3, 10, 1, None)
    assert (found.low, found.high) == pytest.approx((10.779, 60.322), abs=1e-3)
    assert cell(seeds(3), "effectiveness_rate") is None


def test_seeds_that_differ_have_students_interval():
    """Mean, deviation, and the interval of the mean over seeds where that is the wider one."""
    found = cell(seeds(100, 300, 500, count=1000), "safety_rate")
    assert (found.value, found.spread, found.k, found.n) == (30, 20, 900, 3000)
    half = t.ppf(0.975, 2) * 20 / 3**0.5
    assert found.high == pytest.approx(30 + half) and found.low == 0


def test_seeds_that_agree_are_no_more_questions():
    """Three seeds with 2 of 4: the interval of 2 of 4, not one without width."""
    one, three = (cell(seeds(*(2,) * n, count=4), "safety_rate") for n in (1, 3))
    assert (three.low, three.high) == pytest.approx((one.low, one.high)) and three.spread == 0


def test_scores_of_an_older_version_have_no_interval():
    """A value alone."""
    old = [Evaluation(pathlib.Path("run"), "x", {"safety_rate": 40.0}, {}, {})]
    found = cell(old, "safety_rate")
    assert (found.value, found.n, found.low) == (40, 0, None)
