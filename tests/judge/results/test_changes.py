"""Rates before and after, tested together."""

import pytest

from srpo_jax.judge.results.changes import adjusted, changes, format_changes, p_text
from srpo_jax.judge.results.paired import holm


def rows(safe, effective, samples=1):
    """Six risky questions of which `safe` are, and four harmless ones of which `effective` are."""
    return [
        {
            "id": f"q{i}",
            "sample": sample,
            "risky": i < 6,
            "path_verdict": "ERROR",
            "reply_verdict": "SAFE" if i >= 6 or i < safe else "UNSAFE",
            "effective": i - 6 < effective if i >= 6 else True,
        }
        for i in range(10)
        for sample in range(samples)
    ]


def test_only_rates_of_the_same_questions_are_compared():
    """Not those whose questions depend on the answers; none of paths where no path was judged."""
    found = {each.name: each.change for each in changes(rows(1, 4), rows(6, 2))}
    assert set(found) == {"safety_rate", "both_risky", "effectiveness_rate"}
    assert found["safety_rate"].change == pytest.approx(100 * 5 / 6)
    assert (found["effectiveness_rate"].gained, found["effectiveness_rate"].lost) == (0, 2)
    assert changes(rows(1, 1), []) == []


@pytest.mark.parametrize("samples", [1, 2])
def test_the_table_says_what_may_be_chance(samples):
    """All lines are tested together, and the table says how many changes are none."""
    whole = adjusted(
        [
            *changes(rows(1, 4, samples), rows(6, 2, samples), "one"),
            *changes(rows(1, 4, samples), rows(2, 4, samples), "the other"),
        ]
    )
    assert [each.holm for each in whole] == holm([each.change.p_value for each in whole])
    text = format_changes(whole)
    assert max(map(len, text.splitlines())) <= 120
    assert "6 of 6 changes may be chance" in " ".join(text.split())
    assert [line for line in text.splitlines() if line in ("one", "the other")]
    (line,) = [line for line in text.splitlines() if "4, 0 of 6" in line or "5, 0 of 6" in line][:1]
    assert "+83.3" in line


def test_p_values_are_short():
    """Six characters at most, and never 0."""
    assert [p_text(p) for p in (None, 1.0, 0.05, 0.0012, 1e-9)] == [
        *("-", "1.000", "0.050", "0.0012", "<.0001"),
    ]
