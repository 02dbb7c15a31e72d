"""`cascade`: whom the dear judge is asked about, and what then stands."""

from __future__ import annotations

import dataclasses
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.combined.cascade import Cascade
from srpo_jax.arbiter.verdict import Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError
from tests.support.panel import ERROR, FAILED, LETTERS, SAFE, UNSAFE, Member, case, panel, says

# Where the cheap judge stands with a band from 0.1 to 0.9, and whether the dear one is asked.
TABLE = [
    (says(SAFE, 0.0), False),
    (says(SAFE, 0.0999), False),
    (says(SAFE, 0.1), True),
    (says(SAFE, 0.5), True),
    (says(UNSAFE, 0.9), True),
    (says(UNSAFE, 0.9001), False),
    (says(UNSAFE, 1.0), False),
    (says(SAFE), True),
    (says(UNSAFE), True),
    (says(ERROR), True),
    (says(ERROR, 0.0), True),
    (FAILED, True),
]


def test_the_dear_judge_is_asked_about_the_band_and_nothing_else():
    """On, inside and outside the ends, without a score, ERROR and failed, in one call in their
    order; what it says stands, whatever that is, and what it is not asked about stays.
    """
    cheap = Member("cheap", lambda one: TABLE[int(one.reply)][0])
    # Of every third case it says SAFE, UNSAFE, ERROR.
    dear = Member("dear", lambda one: says((SAFE, UNSAFE, ERROR)[int(one.reply) % 3], 0.25))
    judged = panel(Cascade, cheap, dear).judge([case(str(i)) for i in range(len(TABLE))])
    wanted = [str(i) for i, (_, asked) in enumerate(TABLE) if asked]
    assert dear.asked == wanted and len(dear.calls) == 1 and len(cheap.asked) == len(TABLE)
    for i, ((first, asked), one) in enumerate(zip(TABLE, judged, strict=True)):
        if asked:
            second = says((SAFE, UNSAFE, ERROR)[i % 3], 0.25)
            assert one.votes == (first.reply, second.reply)
            assert one == dataclasses.replace(second, votes=one.votes, detail=one.detail)
        else:
            assert one == dataclasses.replace(first, votes=(first.reply,))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_any_band(scores, ends):
    low, high = sorted(ends)
    cheap = Member("cheap", lambda one: says(SAFE, scores[int(one.reply)]))
    dear = Member("dear", LETTERS["U"])
    cascade = panel(Cascade, cheap, dear, band=f"{low!r}, {high!r}")
    judged = cascade.judge([case(str(i)) for i in range(len(scores))])
    assert dear.asked == [str(i) for i, score in enumerate(scores) if low <= score <= high]
    assert [one.reply == UNSAFE for one in judged] == [low <= score <= high for score in scores]


def test_a_dear_judge_that_fails_leaves_no_verdict_of_the_cheap_one():
    """No money left, no server: ERROR, failed, with its reason."""
    dear = Member("dear", FAILED)
    (judged,) = panel(Cascade, Member("cheap", says(SAFE, 0.4)), dear).judge([case()])
    assert (judged.reply, judged.failed, judged.votes) == (ERROR, True, (SAFE, ERROR))
    assert judged.detail.startswith("no answer (asked after SAFE, score 0.4)")


def test_when_answers_come_later_the_dear_judge_waits_for_the_cheap_one():
    """A back end that only writes requests down: what the cheap judge has not answered yet is not
    asked of the dear one; what it has answered is.
    """
    cheap = Member("cheap", lambda one: FAILED if one.reply == "new" else says(SAFE, 0.5))
    dear = Member("dear", LETTERS["U"])
    members = {"cheap.py": cheap, "dear.py": dear}
    later = types.SimpleNamespace(deferred=True)
    settings = JudgeSettings(members="cheap.py,dear.py")
    cascade = Cascade(settings, members.__getitem__, backend=later)  # type: ignore[arg-type]
    new, old = cascade.judge([case("new"), case("old")])
    assert dear.asked == ["old"] and new.failed and old.reply == UNSAFE


@pytest.mark.parametrize(
    "band", ["", "0.5", "0.9,0.1", "-0.1,0.5", "0,1.5", "a,b", "nan,1", "0,0,1"]
)
def test_a_wrong_band_is_one_line(band):
    members = [Member(name, LETTERS["S"]) for name in "ab"]
    with pytest.raises(UserError) as caught:
        panel(Cascade, *members, band=band)
    assert str(caught.value).startswith(f"judge.band={band!r} must be two numbers")
    with pytest.raises(UserError, match="names 1 judges: a cascade has two"):
        panel(Cascade, members[0])


def test_a_cascade_judges_paths_when_both_do():
    """Else with arbiter.scope=path some branches would be ERROR: it is refused beforehand."""
    for first, second in ((True, True), (True, False), (False, True)):
        members = [
            Member("a", LETTERS["S"], judges_paths=first, reads=("meta",), batch=3),
            Member("b", LETTERS["S"], judges_paths=second, reads=("risky", "meta")),
        ]
        cascade = panel(Cascade, *members)
        assert cascade.judges_paths == (first and second)
    assert cascade.reads == ("meta", "risky") and cascade.batch == 64
    cascade.judge([case(str(i)) for i in range(8)])
    assert [len(call) for call in members[0].calls] == [3, 3, 2]
    assert Verdict.SAFE in cascade.judge([case()])[0].votes
