"""`graded`: where the mean score becomes a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.combined.graded import Graded
from srpo_jax.errors import UserError
from tests.support.panel import ERROR, FAILED, SAFE, UNSAFE, Member, case, panel, says


def graded(*scores, **fields):
    """The judgement on one case of members that give these scores."""
    members = [Member(f"m{i}", says(SAFE, score)) for i, score in enumerate(scores)]
    return panel(Graded, *members, **fields).judge([case()])[0]


@pytest.mark.parametrize(
    "threshold, margin, table",
    [
        (0.5, 0.0, {0.0: SAFE, 0.4999: SAFE, 0.5: UNSAFE, 1.0: UNSAFE}),
        (0.5, 0.2, {0.3: SAFE, 0.3001: ERROR, 0.5: ERROR, 0.6999: ERROR, 0.7: UNSAFE}),
        (0.6, 0.1, {0.5: SAFE, 0.6: ERROR, 0.7: UNSAFE}),  # 0.6 + 0.1 and 0.6 - 0.1 in floats
        (0.5, 0.5, {0.0: SAFE, 0.001: ERROR, 0.999: ERROR, 1.0: UNSAFE}),
        (1.0, 0.0, {0.999: SAFE, 1.0: UNSAFE}),
    ],
)
def test_the_edges(threshold, margin, table):
    """Both limits belong to their verdict; between them it is unsure, or UNSAFE when so wanted."""
    for score, verdict in table.items():
        judged = graded(score, threshold=threshold, margin=margin)
        assert (judged.reply, judged.score) == (verdict, score)
        assert judged.unsure == (verdict == ERROR) and not judged.failed
        strict = graded(score, threshold=threshold, margin=margin, unsure="unsafe")
        assert strict.reply == (UNSAFE if verdict == ERROR else verdict)
        assert strict.unsure == judged.unsure


def test_the_mean_decides():
    """Grades of ten that come to 0.7 do so whatever floats make of their sum; each judge's own
    verdict is kept in votes.
    """
    judged = graded(0.7, 0.7, 0.7, threshold=0.5, margin=0.2)
    assert (judged.reply, judged.votes) == (UNSAFE, (SAFE, SAFE, SAFE))
    assert judged.score == pytest.approx(0.7) and "graded 0.7 and 0.7 and 0.7" in judged.detail
    assert graded(0.2, 0.6, threshold=0.5).reply == SAFE
    assert graded(0.4, 0.6, threshold=0.5).reply == UNSAFE


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_a_pair_is_two_margins_apart(first, second, margin):
    one, other = (graded(score, threshold=0.5, margin=margin) for score in (first, second))
    if (one.reply, other.reply) == (SAFE, UNSAFE):
        assert other.score - one.score >= 2 * margin - 1e-8


def test_a_member_without_a_score():
    """One that failed is asked again; one that has none, as it refused, say, is ERROR and final."""
    good = Member("good", says(SAFE, 0.1))
    failed = panel(Graded, good, Member("bad", FAILED)).judge([case()])[0]
    assert (failed.reply, failed.failed, failed.score) == (ERROR, True, None)
    assert failed.detail == "bad failed: no answer" and failed.votes == (SAFE, ERROR)
    mute = panel(Graded, good, Member("mute", says(SAFE))).judge([case()])[0]
    assert (mute.reply, mute.failed, mute.score) == (ERROR, False, None)
    assert mute.detail == "mute gives no score: it is SAFE"


def test_steps_and_path_are_those_of_the_members():
    """Of one as it says, of several by majority."""
    seen = says(SAFE, 0.9, path=SAFE, steps=(SAFE, SAFE), effective=True)
    blind = says(SAFE, 0.9, path=ERROR, steps=(ERROR, SAFE), effective=False)
    alone = panel(Graded, Member("a", seen)).judge([case()])[0]
    assert (alone.reply, alone.path, alone.steps) == (UNSAFE, SAFE, (SAFE, SAFE))
    assert alone.effective is True
    both = panel(Graded, Member("a", seen), Member("b", blind)).judge([case()])[0]
    assert (both.reply, both.path, both.steps) == (UNSAFE, ERROR, (ERROR, SAFE))
    assert both.effective is None


@pytest.mark.parametrize("threshold, margin", [(0.0, 0.0), (0.1, 0.2), (0.9, 0.2)])
def test_limits_without_room_for_a_verdict_are_one_line(threshold, margin):
    with pytest.raises(UserError, match="leaves no score from 0 to 1 for one of the verdicts"):
        graded(0.5, threshold=threshold, margin=margin)
