"""`jury`: rounds, what a juror is shown, who changes its mind, and who decides."""

from __future__ import annotations

import dataclasses

import pytest

from srpo_jax.arbiter.combined.jury import Jury
from srpo_jax.arbiter.prompted.guard import GuardArbiter
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.errors import UserError
from tests.support.panel import ERROR, FAILED, LETTERS, SAFE, UNSAFE, Member, case, panel, says


def juror(name, answer):
    return Member(name, answer, takes_opinions=True)


def stubborn(name, letter):
    return juror(name, LETTERS[letter])


def follower(name, needs):
    """SAFE, until at least so many of the others hold it for unsafe."""

    def answer(one):
        against = [said for said in one.opinions if said.startswith("another's: UNSAFE")]
        return says(UNSAFE if len(against) >= needs else SAFE)

    return juror(name, answer)


def rounds_of(member):
    """How many opinions it was shown in each call."""
    return [len(call[0].opinions) for call in member.calls]


def test_a_jury_that_agrees_is_asked_once():
    """Also when it agrees that it cannot tell; only cases in dispute go on."""
    jurors = [stubborn(name, "S") for name in "abc"]
    (judged,) = panel(Jury, *jurors).judge([case()])
    assert (judged.reply, judged.votes, judged.score) == (SAFE, (SAFE,) * 3, 0.0)
    assert [rounds_of(one) for one in jurors] == [[0]] * 3
    (judged,) = panel(Jury, *(stubborn(name, "E") for name in "abc")).judge([case()])
    assert (judged.reply, judged.unsure, judged.failed) == (ERROR, True, False)
    split = juror("c", lambda one: LETTERS[str(one.reply)])
    jurors = [stubborn("a", "S"), stubborn("b", "S"), split]
    panel(Jury, *jurors).judge([case("S"), case("U"), case("S")])
    assert [[one.reply for one in call] for call in split.calls] == [["S", "U", "S"], ["U"]]


def test_minds_change_from_round_to_round():
    """b follows one, c follows two: after no round it is 2 to 1 for SAFE, after one 2 to 1 for
    UNSAFE, after two they agree, and a third is not held.
    """

    def jury(rounds):
        jurors = [stubborn("a", "U"), follower("b", 1), follower("c", 2)]
        (judged,) = panel(Jury, *jurors, rounds=rounds).judge([case()])
        return judged, [len(one.calls) for one in jurors]

    outcomes = [jury(rounds) for rounds in range(4)]
    assert [judged.reply for judged, _ in outcomes] == [SAFE, UNSAFE, UNSAFE, UNSAFE]
    assert [judged.votes for judged, _ in outcomes] == [
        (UNSAFE, SAFE, SAFE),
        (UNSAFE, UNSAFE, SAFE),
        (UNSAFE, UNSAFE, UNSAFE),
        (UNSAFE, UNSAFE, UNSAFE),
    ]
    assert [calls for _, calls in outcomes] == [[1] * 3, [2] * 3, [3] * 3, [3] * 3]


def test_a_juror_sees_its_own_opinion_and_the_others_without_names():
    """Own first, then the others in their order, verdict and reason; never who said it."""
    jurors = [stubborn("ann", "S"), stubborn("bob", "U"), stubborn("cyd", "E")]
    panel(Jury, *jurors).judge([case()])
    told = [one.calls[1][0].opinions for one in jurors]
    safe, unsafe, error = "SAFE: it is SAFE", "UNSAFE: it is UNSAFE", "undecided: it is ERROR"
    assert told == [
        (f"yours: {safe}", f"another's: {unsafe}", f"another's: {error}"),
        (f"yours: {unsafe}", f"another's: {safe}", f"another's: {error}"),
        (f"yours: {error}", f"another's: {safe}", f"another's: {unsafe}"),
    ]


def test_the_foreman_decides_what_is_left():
    """Who sees the last opinions, none of them as its own; all he says stands, and his vote is the
    last one. A jury that agrees needs none.
    """
    jurors = [stubborn("a", "U"), stubborn("b", "S"), follower("c", 1)]
    verdict = says(SAFE, 0.4, path=SAFE, steps=(SAFE, SAFE), effective=True)
    foreman = juror("lead", verdict)
    (judged,) = panel(Jury, *jurors, foreman=foreman).judge([case()])
    assert rounds_of(foreman) == [3]
    assert [said.split(":")[1].strip() for said in foreman.calls[0][0].opinions] == [
        "UNSAFE",
        "SAFE",
        "UNSAFE",
    ]
    assert all(said.startswith("another's") for said in foreman.calls[0][0].opinions)
    votes = (UNSAFE, SAFE, UNSAFE, SAFE)
    changed = {"detail": judged.detail, "votes": votes, "score": pytest.approx(2.4 / 4)}
    assert judged == dataclasses.replace(verdict, **changed)
    assert judged.detail.startswith("foreman, of 2 UNSAFE, 1 SAFE: ")
    foreman = juror("lead", FAILED)
    assert panel(Jury, *jurors, foreman=foreman).judge([case()])[0].failed
    agreed = panel(Jury, *(stubborn(name, "S") for name in "abc"), foreman=foreman)
    assert agreed.judge([case()])[0].reply == SAFE and len(foreman.calls) == 1


def failing_in(name, stage, letter):
    """A juror that has no answer in one round, and one judgement in the others."""
    asked = []

    def answer(one):
        asked.append(one)
        return FAILED if len(asked) == stage + 1 else LETTERS[letter]

    return juror(name, answer)


@pytest.mark.parametrize(
    "letters, stage, rounds, verdict",
    [
        ("SU", 0, 1, None),  # before the others have heard it
        ("SS", 0, 1, None),  # it might have begun a dispute
        ("SS", 0, 0, SAFE),  # nothing comes after, and two of three agree
        ("SU", 0, 0, None),
        ("SU", 1, 2, None),
        ("SU", 1, 1, None),  # the last round: its vote would decide
    ],
)
def test_a_juror_without_an_answer(letters, stage, rounds, verdict):
    """It keeps no earlier vote; what it could have changed is failed, and asked again."""
    jurors = [stubborn("a", letters[0]), stubborn("b", letters[1]), failing_in("c", stage, "S")]
    (judged,) = panel(Jury, *jurors, rounds=rounds).judge([case()])
    assert judged.votes[2] == ERROR
    assert judged.failed == (verdict is None) and judged.reply == (verdict or ERROR)
    assert len(jurors[0].calls) == stage + 1  # nobody deliberates on half of the opinions


def test_in_the_last_round_a_lost_vote_counts_for_nobody():
    """Four of five still agree that it is UNSAFE after one of them lost its voice."""
    jurors = [stubborn(name, "U") for name in "abc"] + [stubborn("d", "S"), failing_in("e", 1, "U")]
    (judged,) = panel(Jury, *jurors).judge([case()])
    assert (judged.reply, judged.votes) == (UNSAFE, (UNSAFE, UNSAFE, UNSAFE, SAFE, ERROR))


def test_who_may_sit_in_a_jury():
    """Who weighs opinions, an odd number of them. A guard has no words to see them in."""
    assert Prompted.takes_opinions and not GuardArbiter.takes_opinions
    jurors = [stubborn(name, "S") for name in "abc"]
    deaf = Member("deaf", LETTERS["S"])
    with pytest.raises(UserError, match="deaf cannot be in a jury"):
        panel(Jury, *jurors[:2], deaf)
    with pytest.raises(UserError, match="deaf cannot be in a jury"):
        panel(Jury, *jurors, foreman=deaf)
    with pytest.raises(UserError, match="can end in a tie"):
        panel(Jury, *jurors[:2])
    spec = panel(Jury, *jurors, foreman=jurors[0], rounds=2).spec
    assert spec["rounds"] == 2 and spec["foreman"] == {"name": "a", "spec": {}}
    assert [member["name"] for member in spec["members"]] == ["a", "b", "c"]
