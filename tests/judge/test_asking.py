"""Whatever an arbiter does, a case gets the verdict that was given for it, or ERROR."""

from __future__ import annotations

import math
import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.verdict import Case, Judgement, Verdict
from srpo_jax.data_pipelines.json_parts import write_part
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.judge.asking import BATCH, ask, checked, describe

SAFE, UNSAFE, ERROR = Verdict.SAFE, Verdict.UNSAFE, Verdict.ERROR
PATIENCE = 30.0


def case(reply: str, steps=("One.", "Two.")) -> Case:
    return Case(Record("r", (), "q", (), ""), tuple(steps), reply, True)


def judgement(reply: str) -> Judgement:
    """The right one: a function of the case's reply."""
    verdict = (SAFE, UNSAFE, ERROR)[sum(reply.encode()) % 3]
    return Judgement(verdict, SAFE, (SAFE, verdict), None, f"of {reply}", score=0.25)


class Liar:
    """Answers each case by `habits`, a function of its reply; spoils calls as `calls` says, in
    turn. Keeps the replies of every call.
    """

    name = "liar"

    def __init__(self, habits=lambda reply: "right", calls=(), batch=BATCH):
        self.habits, self.calls, self.batch = habits, list(calls), batch
        self.asked: list[list[str]] = []

    def judge(self, cases):
        self.asked.append([case.reply for case in cases])
        manner = self.calls.pop(0) if self.calls else "as asked"
        if manner == "raise":
            raise OSError("no\nconnection")
        if manner == "exit":
            raise SystemExit(0)
        answers = [self._answer(case) for case in cases]
        return {
            "as asked": lambda: answers,
            "one more": lambda: [*answers, judgement("more")],
            "one fewer": lambda: answers[1:],
            "none": lambda: None,
            "a dict": lambda: dict(enumerate(answers)),
            "a set": lambda: set(map(id, answers)),
            "a text": lambda: "x" * len(cases),
            "generated": lambda: (answer for answer in answers),
            "generated, then raises": lambda: _then_raises(answers),
        }[manner]()

    def _answer(self, case):
        habit = self.habits(case.reply)
        if habit == "raises":
            raise ValueError(case.reply)
        right = judgement(case.reply)
        return right if habit == "right" else SPOILED[habit](right)


def _then_raises(answers):
    yield from answers[:-1]
    raise RuntimeError("in the middle")


class Explosive:
    """No comparison, no text and no number can be made of it."""

    def __eq__(self, other):
        raise RuntimeError("no")

    __str__ = __float__ = __eq__
    __hash__ = object.__hash__


def _with(**changes):
    return lambda right: Judgement(**{**vars(right), **changes})


SPOILED = {
    "a text instead of an enum": _with(reply="SAFE"),
    "True instead of an enum": _with(path=True),
    "None": lambda right: None,
    "a tuple": lambda right: (SAFE, SAFE, (), None, ""),
    "a dict": lambda right: {"reply": "SAFE"},
    "a bare enum": lambda right: SAFE,
    "one step verdict more": _with(steps=(SAFE,) * 3),
    "one step verdict fewer": _with(steps=(SAFE,)),
    "steps that are texts": _with(steps=("SAFE", "SAFE")),
    "steps that are one text": _with(steps="SAFE"),
    "no steps at all": _with(steps=None),
    "a score of nan": _with(score=math.nan),
    "a score above 1": _with(score=1.5),
    "a score that is no number": _with(score="0.5"),
    "a score that is huge": _with(score=10**400),
    "effective 1": _with(effective=1),
    "effective of numpy": _with(effective=np.True_),
    "effective 'yes'": _with(effective="yes"),
    "votes of texts": _with(votes=("SAFE",)),
    "unsure 0": _with(unsure=0),
    "failed, but SAFE": _with(failed=True, reply=SAFE),
    "an explosive score": _with(score=Explosive()),
    "an explosive detail": _with(detail=Explosive()),
    "an explosive effective": _with(effective=Explosive()),
}


def right_row(reply: str, given) -> bool:
    """Whether the row is what the arbiter says of this reply."""
    right = judgement(reply)
    return (given["reply_verdict"], given["step_verdicts"], given["detail"], given["failed"]) == (
        right.reply,
        list(right.steps),
        right.detail,
        False,
    )


def is_failed(row) -> bool:
    return (row["reply_verdict"], row["path_verdict"], row["failed"]) == ("ERROR", "ERROR", True)


@pytest.mark.parametrize("habit", SPOILED)
def test_what_is_no_judgement_is_an_error_of_its_case_alone(habit, tmp_path):
    """The others keep their verdicts; the reason names arbiter and record; all can be stored."""
    rows = ask(
        Liar(lambda reply: habit if reply == "b" else "right"),
        [case(reply) for reply in "abc"],
        timeout=PATIENCE,
    )
    assert right_row("a", rows[0]) and right_row("c", rows[2])
    assert is_failed(rows[1]) and rows[1]["detail"].startswith("arbiter 'liar', record 'r': ")
    write_part(tmp_path / "part.jsonl", rows)


CALLS = (
    "as asked",
    "raise",
    "exit",
    "one more",
    "one fewer",
    "none",
    "a dict",
    "a set",
    "a text",
    "generated",
    "generated, then raises",
)


@given(
    replies=st.lists(st.text("abcdefgh", min_size=1, max_size=3), max_size=20),
    habits=st.dictionaries(
        st.sampled_from("abcdefgh"), st.sampled_from([*SPOILED, "raises"]), max_size=4
    ),
    calls=st.lists(st.sampled_from(CALLS), max_size=12),
    batch=st.integers(1, 9),
)
@settings(deadline=None)
def test_no_verdict_is_ever_shifted(replies, habits, calls, batch):
    """Any mixture of cases that raise, wrong shapes and spoiled calls: as many rows as cases, each
    the verdict on its own case or an ERROR that is asked again; a case that the arbiter answers
    whenever it is asked keeps its verdict once the calls are as asked.
    """
    arbiter = Liar(lambda reply: habits.get(reply[0], "right"), calls, batch)
    rows = ask(arbiter, [case(reply) for reply in replies], timeout=PATIENCE)
    assert len(rows) == len(replies)
    for reply, row in zip(replies, rows, strict=True):
        assert right_row(reply, row) or is_failed(row)
        if reply[0] in habits:
            assert is_failed(row)
        elif not calls:
            assert right_row(reply, row)
    assert all(len(asked) <= batch for asked in arbiter.asked)


@given(st.sets(st.integers(0, 63), max_size=6))
@settings(deadline=None)
def test_a_case_that_fails_costs_no_other(bad):
    """An arbiter that raises because of single cases is asked in halves: every other case has its
    verdict, with few questions more.
    """
    replies = [str(i) for i in range(64)]
    arbiter = Liar(lambda reply: "raises" if int(reply) in bad else "right")
    rows = ask(arbiter, [case(reply) for reply in replies], timeout=PATIENCE)
    for i, row in enumerate(rows):
        assert is_failed(row) if i in bad else right_row(str(i), row)
        assert i not in bad or "ValueError" in row["detail"]
    assert len(arbiter.asked) <= 1 + 12 * len(bad)


@pytest.mark.parametrize("batch, failed", [(1, [False, True, False]), (3, [True] * 3)])
def test_an_arbiter_that_hangs_is_left_behind(batch, failed):
    """A batch that never ends costs its time once, not the stage; its cases are told as such."""
    release = threading.Event()

    class Hanging(Liar):
        def judge(self, cases):
            if any(case.reply == "b" for case in cases):
                release.wait(60)
            return super().judge(cases)

    rows = ask(Hanging(batch=batch), [case(reply) for reply in "abc"], timeout=0.3)
    release.set()
    assert [is_failed(row) for row in rows] == failed
    assert "no answer within 0.3 s" in rows[1]["detail"]


def test_what_the_user_can_mend_ends_the_stage():
    """A wrong key, a server that is not there, Ctrl-C: raised as they are, not asked again."""
    for error in (UserError("no key"), RunFailure("no server"), KeyboardInterrupt()):

        class Telling(Liar):
            def judge(self, cases, error=error):
                self.asked.append([])
                raise error

        arbiter = Telling()
        with pytest.raises(type(error)):
            ask(arbiter, [case("a"), case("b")], timeout=PATIENCE)
        assert len(arbiter.asked) == 1


def test_when_too_many_failed_the_rest_is_not_asked():
    """It is ERROR that will be asked again; what was answered before stays."""
    arbiter = Liar(lambda reply: "right" if reply < "c" else "raises", batch=2)
    told = []
    rows = ask(
        arbiter,
        [case(reply) for reply in "abcdefgh"],
        timeout=PATIENCE,
        too_many_failed=lambda failed: told.append(failed) or failed >= 3,
    )
    assert told == [1, 2, 3]
    assert right_row("a", rows[0]) and right_row("b", rows[1])
    assert all(is_failed(row) for row in rows[2:]) and len(rows) == 8
    assert "not asked" in rows[-1]["detail"] and "not asked" not in rows[4]["detail"]
    assert not any("g" in asked for asked in arbiter.asked)


def test_details_are_one_line_that_can_be_stored(tmp_path):
    """Whatever a model wrote: line ends, half a character, a book."""
    odd = Judgement(SAFE, SAFE, (), True, "a\nb \ud800 " + "x" * 5000, votes=(SAFE, UNSAFE))
    row = checked(odd, case("a"), "liar")
    write_part(tmp_path / "part.jsonl", [row])
    assert row["detail"].startswith("a b ? x") and len(row["detail"]) == 1000
    assert row["votes"] == ["SAFE", "UNSAFE"] and row["effective"] is True and not row["failed"]


def test_what_was_answered_is_kept_at_ctrl_c():
    """The arbiter's own thread does not end then, so it is told to keep what it has."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread is interrupted")
    kept, released = [], threading.Event()

    class Paid(Liar):
        def judge(self, cases):
            os.kill(os.getpid(), signal.SIGINT)  # as a terminal does; it also wakes who waits
            released.wait(PATIENCE)

        def flush(self):
            kept.append(True)

    # A process that was started in the background ignores the signal, unless it says otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(Paid(), [case("a")], timeout=PATIENCE)
    finally:
        released.set()
        signal.signal(signal.SIGINT, before)
    assert kept == [True]


def test_a_judge_is_named_by_all_that_decides_its_verdicts():
    """Its digest changes with name, spec and what it reads of a record, and with nothing else."""

    def made(**changes):
        return type("Made", (Liar,), {"reads": ("meta",), "spec": {"model": "m"}, **changes})()

    digests = {
        describe(arbiter, "kind")["digest"]
        for arbiter in (
            made(),
            made(name="other"),
            made(spec={"model": "m", "votes": 3}),
            made(reads=("meta", "category")),
            made(reads=()),
        )
    }
    assert len(digests) == 5
    same = made(reads=("category", "meta")), made(reads=("meta", "category"), more=1)
    assert len({describe(arbiter, k)["digest"] for arbiter, k in zip(same, "ab")}) == 1
    plain = describe(Liar(), "k")
    assert (plain["spec"], plain["reads"], plain["arbiter"]) == ({}, [], "liar")
    for changes, said in (
        ({"reads": ("answer",)}, "says it reads 'answer', which is none of meta"),
        ({"spec": {"model": Explosive()}}, "spec of arbiter 'liar' is not JSON"),
        ({"batch": 0}, "its batch is 0"),
        ({"batch": "8"}, "its batch is '8'"),
        ({"reads": None}, "its reads is None, not a tuple"),
        ({"reads": "meta"}, "its reads is 'meta', not a tuple"),
        ({"reads": (3,)}, "not a tuple of names"),
        ({"spec": None}, "it is a NoneType, not a dict"),
        ({"spec": {"score": math.nan}}, "spec of arbiter 'liar' is not JSON"),
        ({"spec": property(lambda self: 1 / 0)}, "looking at arbiter 'liar' raises ZeroDiv"),
        ({"name": " "}, "the name of an arbiter must be printable"),
        ({"name": "a\nb"}, "the name of an arbiter must be printable"),
        ({"name": "\ud800"}, "the name of an arbiter must be printable"),
    ):
        fresh = made(**changes)
        fresh.__dict__.pop("batch", None)
        with pytest.raises(UserError, match=said) as error:
            describe(fresh, "kind")
        assert "\n" not in str(error.value)
