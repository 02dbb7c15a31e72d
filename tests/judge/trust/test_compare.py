"""Two sets of verdicts: the table, rates, agreement and the test of whether one is stricter."""

from __future__ import annotations

import pytest

from srpo_jax.errors import UserError
from srpo_jax.judge.results.intervals import wilson
from srpo_jax.judge.results.paired import mcnemar
from srpo_jax.judge.trust.compare import compare, likeness
from tests.judge.trust.test_calibrate import Known, cases


def test_only_what_both_judged_is_compared():
    """ERROR has its place in the table, and is no opinion in any number; what one alone judged is
    counted apart."""
    known = Known(a=cases("SSSSUUUUE..S"), b=cases("SSSUUUUSSSE"))
    found = compare(known, known.find("a"), known.find("b"))
    assert found.alone == (1, 2) and found.overall.cases == 9
    assert found.overall.table == {
        ("SAFE", "SAFE"): 3, ("SAFE", "UNSAFE"): 1, ("UNSAFE", "UNSAFE"): 3, ("UNSAFE", "SAFE"): 1,
        ("ERROR", "SAFE"): 1,
    }  # fmt: skip
    assert found.overall.opinions == 8
    assert found.overall.agreement == pytest.approx((0.75, *wilson(0.75, 8)))
    assert found.overall.kappa == pytest.approx(0.5) and found.overall.p_value == 1
    assert [each.value for each in found.overall.unsafe] == [0.5, pytest.approx(4 / 9)]
    assert [key[2] for key, _ in found.differ] == [3, 7, 8]
    with pytest.raises(UserError, match="a and c have no case of the cases of a test in common"):
        known = Known(a=cases("S"), c=cases(".U"))
        compare(known, known.find("a"), known.find("c"))


def test_a_stricter_judge_is_told_from_chance():
    """12 more UNSAFE of one judge against 1 of the other is no accident, whichever comes first;
    without an opinion of both there is nothing to test."""
    pairs = [("UNSAFE", "SAFE")] * 12 + [("SAFE", "UNSAFE")] + [("SAFE", "SAFE")] * 40
    assert likeness(pairs).p_value == mcnemar(12, 1) == likeness([p[::-1] for p in pairs]).p_value
    assert likeness(pairs).p_value == pytest.approx(2 * 14 / 2**13)
    nothing = likeness([("ERROR", "SAFE")])
    assert nothing.p_value is nothing.agreement is nothing.kappa is nothing.unsafe[0] is None
