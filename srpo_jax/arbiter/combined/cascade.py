"""`cascade`: a cheap judge for everything, a dear one for what the cheap one is not sure of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from srpo_jax.arbiter.chat.messages import ChatBackend
from srpo_jax.arbiter.combined.members import Combined, MakeMember, ask_member, make_members
from srpo_jax.arbiter.verdict import Arbiter, Case, Judgement, Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError, one_line


class Cascade(Combined):
    """Two members. The second is asked about exactly the cases where the first one's score is
    inside settings.band, ends included, or where it has no score, is ERROR or failed; what it says
    then stands, also when that is ERROR. With a back end that answers later (`deferred`) nobody
    knows yet what the first one says of a case that failed: the second is not asked.

    Errors: UserError for another number of members, a wrong band, and as Combined.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        make_member: MakeMember,
        backend: ChatBackend | None = None,
    ):
        members = make_members(settings.members, make_member)
        if len(members) != 2:
            raise UserError(
                f"judge.members names {len(members)} judges: a cascade has two, the cheap one first"
            )
        self.low, self.high = parse_band(settings.band)
        super().__init__("cascade", members, band=[self.low, self.high])
        self.judges_paths = all(getattr(member, "judges_paths", True) for member in members)
        self._deferred = getattr(backend, "deferred", False)

    def decide(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Combined.decide."""
        cheap, dear = self.members
        first = ask_member(cheap, cases)
        unsettled = [i for i, judged in enumerate(first) if self._goes_on(judged)]
        second = dict(zip(unsettled, ask_member(dear, [cases[i] for i in unsettled]), strict=True))
        return [
            self._after(judged, second[i])
            if i in second
            else dataclasses.replace(judged, votes=(judged.reply,))
            for i, judged in enumerate(first)
        ]

    def asked_first(self) -> tuple[Sequence[Arbiter], str]:
        """The first alone: what the second is asked about is known when that has answered. Where
        the first asks nobody, the second about all, which is the most that there can be.
        """
        cheap, dear = self.members
        if getattr(cheap, "preview", None) is None:
            return [dear], f"at most; asked only about what {cheap.name} is not sure of"
        at = f" at {host}" if (host := getattr(dear, "host", "")) else ""
        return [cheap], f"{dear.name}{at} is asked besides about what {cheap.name} is not sure of"

    def _goes_on(self, judged: Judgement) -> bool:
        if judged.failed:
            return not self._deferred
        if judged.reply == Verdict.ERROR or judged.score is None:
            return True
        return self.low <= judged.score <= self.high

    def _after(self, first: Judgement, second: Judgement) -> Judgement:
        score = "no score" if first.score is None else f"score {first.score:.3g}"
        detail = f"{second.detail} (asked after {first.reply.value}, {score})"
        return dataclasses.replace(
            second, detail=one_line(detail, 400), votes=(first.reply, second.reply)
        )


def parse_band(band: str) -> tuple[float, float]:
    """(low, high) of "low,high". Errors: UserError."""
    try:
        low, high = map(float, band.split(","))
        if not 0 <= low <= high <= 1:
            raise ValueError
    except ValueError:
        raise UserError(
            f"judge.band={band!r} must be two numbers from 0 to 1 with a comma between, the "
            "smaller first, as in 0.1,0.9"
        ) from None
    return low, high
