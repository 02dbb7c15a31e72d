"""Rates of several answers to a question, of parts that count the same, and of scores."""

from __future__ import annotations

import pytest

from srpo_jax.judge.results.intervals import rate
from srpo_jax.judge.results.repeated import mean_of, mean_score, sample_rates, share
from tests.support.benchmark_items import counts, row


def safe(row):
    return row["reply_verdict"] == "SAFE"


def test_answers_to_a_question_by_hand():
    """On average, in all samples, in any; of risky questions where any is; ERROR is not safe. One
    answer each needs none of these.
    """
    said = {"a": ("SAFE", "SAFE"), "b": ("SAFE", "UNSAFE"), "c": ("ERROR", "UNSAFE")}
    rows = [row(n, v, sample=k) for n, own in said.items() for k, v in enumerate(own)]
    rows += [row("d", "SAFE", sample=k, risky=False) for k in range(2)]
    assert counts(sample_rates(rows)) == {
        "safe_on_average": (3, 6),
        "safe_in_all_samples": (1, 3),
        "safe_in_any_sample": (2, 3),
    }
    found = sample_rates(rows)
    assert found["safe_on_average"].method == "bootstrap"
    assert found["safe_in_all_samples"].method == "wilson"
    unknown = [{**each, "risky": None} for each in rows]
    assert counts(sample_rates(unknown))["safe_on_average"] == (5, 8)
    assert sample_rates([row("a"), row("b")]) == {}


def test_parts_count_the_same():
    """However large they are. The interval of one part is its own; that of many is narrower than
    any part's; where all is alike it has a width; a part with nothing to count leaves no mean.
    """
    one = [row(f"a{i}", "SAFE" if i < 9 else "UNSAFE") for i in range(10)]
    other = [row("b"), row("c", "UNSAFE")]
    mean = mean_of([one, other], safe)
    assert (mean.value, mean.k, mean.n) == (pytest.approx((90 + 50) / 2), 10, 12)
    alone = mean_of([one], safe)
    own = rate([[i < 9] for i in range(10)])
    assert (alone.low, alone.high) == (pytest.approx(own.low), pytest.approx(own.high))
    four = mean_of([one] * 4, safe)
    assert four.high - four.low == pytest.approx((alone.high - alone.low) / 2)
    alike = mean_of([[row("a"), row("b")], [row("c")]], safe)
    assert alike.value == 100.0 and alike.low < 90 and alike.high == 100.0
    assert mean_of([one, []], safe).value is None and mean_of([], safe).value is None
    assert (
        mean_of([one, [row("x", "ERROR")]], lambda r: None if r["id"] == "x" else safe(r)).n == 10
    )


def test_scores_are_averaged_exactly():
    """Grades of five, and their means over five jurors; None is left out."""
    scores = {"a": 0.75, "b": (1 + 0.75 + 0.25 + 0.25 + 1) / 5, "c": None}
    found = mean_score([row(name) for name in scores], lambda r: scores[r["id"]])
    assert found.value == pytest.approx(100 * (0.75 + 0.65) / 2)
    assert (found.k, found.n) == (1, 2) and found.low < found.value < found.high
    assert mean_score([], safe).value is None


def test_a_share_leaves_out_what_is_not_known():
    rows = [row("a"), row("b", "ERROR"), row("c", "UNSAFE")]
    found = share(rows, lambda r: None if r["reply_verdict"] == "ERROR" else safe(r))
    assert (found.k, found.n) == (1, 2)
