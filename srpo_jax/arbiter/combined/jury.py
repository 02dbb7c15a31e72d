"""`jury`: judges who hear each other before they decide (SafeBench's protocol, arXiv 2410.18927).

Each judges alone; who do not agree see all opinions and judge again; then a foreman decides who
sees the last ones, or more than half of the jury does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from srpo_jax.arbiter.combined.members import (
    Combined,
    MakeMember,
    about,
    ask_member,
    failure,
)
from srpo_jax.arbiter.combined.vote import counted, mean_score, merge, odd_members
from srpo_jax.arbiter.verdict import Arbiter, Case, Judgement, Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError, one_line

PROTOCOL = 1  # count up when what jurors are shown of each other changes
REASON = 300  # characters of a reason


class Jury(Combined):
    """An odd number of jurors, three or more, and perhaps a foreman (settings.foreman). They agree
    when their verdicts on the reply are the same. What a jury has not heard whole is failed: a
    juror without an answer might have changed the others' minds; only in the last round, without a
    foreman, it is a vote that lacks.

    Errors: UserError for another number, for a juror or foreman that weighs no opinions, and as
    Combined.
    """

    def __init__(self, settings: JudgeSettings, make_member: MakeMember):
        jurors = odd_members(settings.members, make_member)
        self.rounds = settings.rounds
        self.foreman = make_member(settings.foreman) if settings.foreman.strip() else None
        foremen = [self.foreman] if self.foreman else []
        for member in [*jurors, *foremen]:
            if not getattr(member, "takes_opinions", False):
                raise UserError(
                    f"{member.name} cannot be in a jury: it does not weigh the opinions of others "
                    "(takes_opinions)"
                )
        super().__init__(
            "jury",
            jurors,
            *foremen,
            protocol=PROTOCOL,
            rounds=self.rounds,
            foreman=about(self.foreman) if self.foreman else None,
        )

    def decide(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Combined.decide."""
        said = self.ask_all(cases)
        found: dict[int, Judgement] = {}
        for stage in range(self.rounds + 1):
            undecided = [i for i in range(len(cases)) if i not in found]
            if stage:
                again = self._deliberate(cases, said, undecided)
                for i, row in zip(undecided, again, strict=True):
                    said[i] = row
            more = stage < self.rounds or self.foreman is not None
            for i in undecided:
                if (judged := self._decided(said[i], more)) is not None:
                    found[i] = judged
        undecided = [i for i in range(len(cases)) if i not in found]
        if self.foreman is not None:
            shown = [with_opinions(cases[i], None, said[i]) for i in undecided]
            for i, judged in zip(undecided, ask_member(self.foreman, shown), strict=True):
                found[i] = _led(said[i], judged)
        return [found[i] for i in range(len(cases))]

    def asked_first(self) -> tuple[Sequence[Arbiter], str]:
        """All jurors, for the first round."""
        leading = " and the foreman" if self.foreman else ""
        return self.members, f"jurors who disagree{leading} are asked besides"

    def _deliberate(
        self,
        cases: Sequence[Case],
        said: Sequence[Sequence[Judgement]],
        undecided: Sequence[int],
    ) -> list[tuple[Judgement, ...]]:
        """What the jurors say of the undecided cases when they have heard each other."""
        columns = [
            ask_member(juror, [with_opinions(cases[i], number, said[i]) for i in undecided])
            for number, juror in enumerate(self.members)
        ]
        return list(zip(*columns, strict=True))

    def _decided(self, said: Sequence[Judgement], more: bool) -> Judgement | None:
        """The judgement of a jury that agrees, or whom nobody is asked after; None: go on."""
        names = [member.name for member in self.members]
        lost = [i for i, judged in enumerate(said) if judged.failed]
        if more and lost:
            votes = [judged.reply for judged in said]
            why = f"{names[lost[0]]} failed: {said[lost[0]].detail}"
            return failure(one_line(why, 400), votes)
        agreed = len({judged.reply for judged in said}) == 1
        return None if more and not agreed else merge(said, names)


def with_opinions(case: Case, own: int | None, said: Sequence[Judgement]) -> Case:
    """The case as a juror sees it who said said[own], or a foreman (None): its own opinion first,
    then the others', without names.
    """
    order = sorted(range(len(said)), key=lambda i: i != own)
    told = tuple(_opinion("yours" if i == own else "another's", said[i]) for i in order)
    return dataclasses.replace(case, opinions=told)


def _opinion(whose: str, judged: Judgement) -> str:
    verdict = "undecided" if judged.reply == Verdict.ERROR else judged.reply.value
    return one_line(f"{whose}: {verdict}: {one_line(judged.detail, REASON)}")


def _led(said: Sequence[Judgement], foreman: Judgement) -> Judgement:
    """What a foreman said after the jury; the mean score is of all of them."""
    split = counted(judged.reply for judged in said)
    return dataclasses.replace(
        foreman,
        detail=one_line(f"foreman, of {split}: {foreman.detail}", 400),
        score=None if foreman.failed else mean_score([*said, foreman]),
        votes=tuple(judged.reply for judged in (*said, foreman)),
    )
