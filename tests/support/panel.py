"""Members for combined arbiters that say what a test wants, and keep what they were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from srpo_jax.arbiter.verdict import Arbiter, Case, Judgement, Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.data_pipelines.records import Record

SAFE, UNSAFE, ERROR = Verdict.SAFE, Verdict.UNSAFE, Verdict.ERROR
FAILED = Judgement(ERROR, ERROR, (), None, "no answer", failed=True)


def case(reply: str = "r", steps: Sequence[str] = ("One.", "Two.")) -> Case:
    return Case(Record(reply, (), "q", (), ""), tuple(steps), reply, True)


def says(reply: Verdict, score: float | None = None, **fields: Any) -> Judgement:
    """A judgement on the reply, and more by name."""
    fields = {"path": ERROR, "steps": (), "effective": None, "detail": f"it is {reply}"} | fields
    return Judgement(reply, score=score, **fields)


# A letter for each way to speak of a reply.
LETTERS = {"S": says(SAFE), "U": says(UNSAFE), "E": says(ERROR), "F": FAILED}


class Member:
    """Answers each case by `answer`, a function of it or one judgement for all."""

    def __init__(self, name: str, answer: Callable[[Case], Any] | Judgement, **attributes: Any):
        self.name = name
        self.answer = answer if callable(answer) else lambda _: answer
        self.calls: list[list[Case]] = []
        for key, value in attributes.items():
            setattr(self, key, value)

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        self.calls.append(list(cases))
        return [self.answer(case) for case in cases]

    @property
    def asked(self) -> list[str]:
        """The replies, in the order of asking."""
        return [str(case.reply) for call in self.calls for case in call]


def panel(kind: Callable[..., Any], *members: Arbiter, foreman: Arbiter | None = None, **fields):
    """A combined arbiter of these members."""
    known = {f"{number}.py": member for number, member in enumerate(members)}
    settings = JudgeSettings(
        members=",".join(known), foreman="foreman.py" if foreman else "", **fields
    )
    return kind(settings, {**known, "foreman.py": foreman}.__getitem__)
