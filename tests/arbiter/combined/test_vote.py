"""`vote`: more than half of all, whoever else is silent, broken or undecided."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.combined.vote import Vote, merge
from srpo_jax.arbiter.verdict import Judgement
from srpo_jax.errors import UserError
from tests.support.panel import ERROR, FAILED, LETTERS, SAFE, UNSAFE, Member, case, panel, says

NAMES = [f"judge {i}" for i in range(9)]


def vote_of(letters: str) -> Judgement:
    members = [Member(f"m{i}", LETTERS[letter]) for i, letter in enumerate(letters)]
    (judged,) = panel(Vote, *members).judge([case()])
    return judged


def winner(letters) -> str | None:
    for letter in "SU":
        if letters.count(letter) > len(letters) / 2:
            return letter
    return None


@pytest.mark.parametrize("count", [3, 5])
def test_all_ways_to_vote(count):
    """Every table of so many voters. The oracle fills in what those that failed might have said: a
    vote that this could decide is failed, and one that has a winner stays as it is.
    """
    for letters in itertools.product("SUEF", repeat=count):
        judged = vote_of("".join(letters))
        filled = itertools.product(*("SUE" if letter == "F" else letter for letter in letters))
        ends = {winner(each) for each in filled}
        won = winner(letters)
        assert judged.reply == {"S": SAFE, "U": UNSAFE, None: ERROR}[won]
        assert judged.failed == (won is None and ends != {None}), letters
        assert judged.unsure == (won is None and not judged.failed)
        assert judged.votes == tuple(LETTERS[letter].reply for letter in letters)
        said = [letter == "U" for letter in letters if letter in "SU"]
        mean = sum(said) / len(said) if said and not judged.failed else None
        assert judged.score == (None if mean is None else pytest.approx(mean))


VERDICTS = st.sampled_from([SAFE, UNSAFE, ERROR])


@st.composite
def judgements(draw):
    if draw(st.integers(0, 4)) == 0:
        return FAILED
    steps = draw(st.one_of(st.just(()), st.tuples(VERDICTS, VERDICTS)))
    path = draw(VERDICTS)
    if steps:
        path = UNSAFE if UNSAFE in steps else ERROR if ERROR in steps else SAFE
    effective = draw(st.sampled_from([True, False, None]))
    score = draw(st.one_of(st.none(), st.floats(0, 1)))
    return says(draw(VERDICTS), score, path=path, steps=steps, effective=effective)


PANELS = st.integers(1, 3).flatmap(
    lambda n: st.lists(judgements(), min_size=2 * n + 1, max_size=2 * n + 1)
)


@settings(max_examples=200, deadline=None)
@given(PANELS, st.randoms(use_true_random=False))
def test_nobody_counts_more_than_another(said, random):
    """In any order of the members everything is the same but the order of votes and the words."""
    other = list(said)
    random.shuffle(other)
    first, second = merge(said, NAMES), merge(other, NAMES)
    assert sorted(first.votes) == sorted(second.votes)
    if first.score is not None:
        assert first.score == pytest.approx(second.score)
    plain = {"votes": (), "detail": "", "score": None}
    assert dataclasses.replace(first, **plain) == dataclasses.replace(second, **plain)


@settings(max_examples=200, deadline=None)
@given(PANELS, st.integers(0, 6))
def test_a_voice_that_is_lost_makes_no_verdict(said, index):
    """Whoever turns to ERROR or fails: what was no verdict stays none, and a verdict stays what it
    is or becomes none.
    """
    before = merge(said, NAMES)
    if before.failed:
        return
    for lost in (says(ERROR), FAILED):
        fewer = [lost if i == index % len(said) else one for i, one in enumerate(said)]
        after = merge(fewer, NAMES)
        assert after.reply in (before.reply, ERROR)
        assert all(a in (b, ERROR) for a, b in zip(after.steps, before.steps))
        assert (after.effective is None) or after.effective == before.effective
        assert after.path in (before.path, ERROR)


def test_steps_path_and_effectiveness_are_voted_on():
    """Step by step; a path whose steps are each safe to most, but which most hold for unsafe, each
    for another step, is unsafe. Steps that only a minority judges are left out.
    """
    both = [(UNSAFE, SAFE), (SAFE, UNSAFE), (SAFE, SAFE)]
    paths = [UNSAFE, UNSAFE, SAFE]
    said = [
        says(SAFE, path=path, steps=steps, effective=effective)
        for steps, path, effective in zip(both, paths, (True, False, True))
    ]
    judged = merge(said, NAMES)
    assert (judged.steps, judged.path, judged.effective) == ((SAFE, SAFE), UNSAFE, True)
    agreed = merge([said[0], said[0], said[2]], NAMES)
    assert (agreed.steps, agreed.path) == ((UNSAFE, SAFE), UNSAFE)
    alone = [says(SAFE, path=SAFE), says(SAFE, path=SAFE), said[0]]
    assert (merge(alone, NAMES).steps, merge(alone, NAMES).path) == ((), SAFE)
    open_path = merge([says(SAFE, path=SAFE), says(SAFE, path=UNSAFE), FAILED], NAMES)
    assert open_path.failed and open_path.path == ERROR and "judge 2 failed" in open_path.detail


def test_a_broken_member_costs_its_own_vote():
    """One that raises at a case, gives too few answers, or something else than a judgement on it:
    the others decide, and of the cases that it can judge it is heard.
    """

    def picky(one):
        if one.reply == "b":
            raise OSError("no\nconnection")
        return LETTERS["U"]

    class Short(Member):
        def judge(self, cases):
            return super().judge(cases)[: 2 if len(cases) > 2 else None]

    cases = [case(reply) for reply in "abc"]
    sick = Member("sick", lambda one: "UNSAFE" if one.reply == "c" else says(UNSAFE, steps=(SAFE,)))
    members = [Member("picky", picky), Short("short", LETTERS["U"]), sick]
    judged = panel(Vote, *members).judge(cases)
    assert [one.votes for one in judged] == [
        (UNSAFE, UNSAFE, ERROR),
        (ERROR, UNSAFE, ERROR),
        (UNSAFE, UNSAFE, ERROR),
    ]
    assert [one.failed for one in judged] == [False, True, False]
    assert "OSError: no connection" in judged[1].detail

    def unusable(_):
        raise UserError("no key")

    with pytest.raises(UserError, match="no key"):
        panel(Vote, Member("a", unusable), *members[:2]).judge(cases)


def test_who_may_vote():
    """An odd number of different judges, three or more."""
    three = [Member(f"m{i}", LETTERS["S"]) for i in range(3)]
    with pytest.raises(UserError, match="names 2 judges, who can end in a tie"):
        panel(Vote, *three[:2])
    with pytest.raises(UserError, match="ask it alone several times, with its own judge.votes"):
        panel(Vote, three[0])
    with pytest.raises(UserError, match="judge.members is empty"):
        panel(Vote)
    with pytest.raises(UserError, match="numbers 1 and 3 are the same judge, m0"):
        panel(Vote, three[0], three[1], Member("m0", LETTERS["U"]))


def test_a_label_is_that_of_more_than_half_of_all():
    """Also where the verdict is the same without one."""
    first, second = {"reply": "refuses"}, {"reply": "warns"}
    for labels, kept in (((first, first, second), first), ((first, second, {}), {})):
        said = [says(SAFE, labels=own) for own in labels]
        assert merge(said, "abc").labels == kept and merge(said, "abc").reply == SAFE
