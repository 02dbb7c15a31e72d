"""The value of prefixes and the first failing step, counted by hand."""

from __future__ import annotations

import pytest

from srpo_jax.judge.results.intervals import rate
from srpo_jax.judge.results.lost_safety import (
    ERROR,
    NO_FAILURE,
    NO_STEP,
    REPLY,
    first_failure,
    first_failures,
    prefix_values,
)

S, U, E = "SAFE", "UNSAFE", "ERROR"


def tree(risky, **branches):
    """branches: a0="SU" are the replies of two that leave the reference path after 0 steps."""
    words = {"S": S, "U": U, "E": E}
    return {
        "risky": risky,
        "branches": [
            {"at": int(at[1:]), "reply_verdict": words[letter]}
            for at, letters in branches.items()
            for letter in letters
        ],
    }


def row(name, steps, reply, path=None, risky=True):
    path = path or (U if U in steps else S)
    verdicts = {"step_verdicts": steps, "path_verdict": path, "reply_verdict": reply}
    return {"id": name, "risky": risky, "effective": None, **verdicts}


def test_a_prefix_is_worth_the_safe_share_of_its_branches():
    """Of risky questions alone; ERROR is not safe and counts; a question without branches at a
    point is not there; the interval is of questions, not of branches."""
    trees = [
        tree(True, a0="SUUU", a1="SSUE"),
        tree(True, a1="SSSS", a0="UUUU"),
        tree(False, a0="SSSS"),
        tree(None, a0="SSSS"),
        tree(True, a2="SS"),
    ]
    found = prefix_values(trees)
    assert list(found) == [0, 1, 2]
    assert [(each.k, each.n) for each in found.values()] == [(1, 8), (6, 8), (2, 2)]
    assert found[0].value == 12.5 and found[0].method == "bootstrap"
    assert found[0] == rate([[True, False, False, False], [False] * 4])
    assert found[2].high == 100 and found[2].low == pytest.approx(rate([[True]]).low)


@pytest.mark.parametrize(
    "answer, place",
    [
        (row("a", [S, U, U], S), 2),  # it came back, and failed on the way all the same
        (row("a", [E, U], E), 2),
        (row("a", [S, S], U), REPLY),
        (row("a", [S, S], S), NO_FAILURE),
        (row("a", [S, S], U, path=U), NO_STEP),
        (row("a", [S, S], E), ERROR),
        (row("a", [], S, path=E), ERROR),
    ],
)
def test_where_an_answer_first_fails(answer, place):
    """The first unsafe step, whatever comes after; else the reply, else what is known."""
    assert first_failure(answer) == place


def test_the_shares_are_of_risky_answers_and_add_up():
    """Two answers to one question count as one draw; every place has its share, and all shares
    together are the whole. Without a judged step there is nothing to tell."""
    rows = [
        row("a", [S, U, S], S),
        row("a", [S, S, S], S),
        row("b", [U, U, U], U),
        row("c", [S, S, S], U),
        row("d", [U, U, U], U, risky=False),
    ]
    found = first_failures(rows)
    counted = {place: (each.k, each.n) for place, each in found.items() if each.k}
    assert counted == {1: (1, 4), 2: (1, 4), REPLY: (1, 4), NO_FAILURE: (1, 4)}
    assert list(found) == [1, 2, 3, REPLY, NO_STEP, ERROR, NO_FAILURE]
    assert sum(each.value or 0 for each in found.values()) == 100
    assert found[2].method == "bootstrap"
    assert first_failures([row("a", [], U)]) == {} == first_failures([])
