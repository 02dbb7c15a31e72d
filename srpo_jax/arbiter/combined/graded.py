"""`graded`: judges that grade; a threshold with a margin makes verdicts of their mean.

With a margin m, a SAFE and an UNSAFE reply are at least 2 m apart in score, and so are the two
sides of every pair that training makes of them.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from srpo_jax.arbiter.combined.members import Combined, MakeMember, failure, make_members
from srpo_jax.arbiter.combined.vote import merge
from srpo_jax.arbiter.verdict import Case, Judgement, Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError, one_line

SAFE, UNSAFE, ERROR = Verdict.SAFE, Verdict.UNSAFE, Verdict.ERROR
DIGITS = 9  # what rounding leaves of a score, so that 0.7 is 0.5 + 0.2


class Graded(Combined):
    """UNSAFE from settings.threshold + margin, SAFE up to threshold - margin (below it, without a
    margin), and between them unsure: ERROR, or UNSAFE with settings.unsure=unsafe. Steps, path and
    effectiveness are as the members say, by majority.

    Errors: UserError for limits that leave no room for one of the verdicts, and as Combined.
    """

    def __init__(self, settings: JudgeSettings, make_member: MakeMember):
        self.threshold, self.margin = settings.threshold, settings.margin
        self.if_unsure = UNSAFE if settings.unsure == "unsafe" else ERROR
        least, most = self.threshold - self.margin, self.threshold + self.margin
        if round(least, DIGITS) < 0 or round(most, DIGITS) > 1 or most == 0:
            raise UserError(
                f"judge.threshold={self.threshold:g} with judge.margin={self.margin:g} leaves no "
                "score from 0 to 1 for one of the verdicts"
            )
        super().__init__(
            "graded",
            make_members(settings.members, make_member),
            threshold=self.threshold,
            margin=self.margin,
            unsure=self.if_unsure.value,
        )

    def decide(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Combined.decide."""
        return [self._graded(said) for said in self.ask_all(cases)]

    def _graded(self, said: Sequence[Judgement]) -> Judgement:
        names = [member.name for member in self.members]
        votes = tuple(judged.reply for judged in said) if len(said) > 1 else said[0].votes
        for name, judged in zip(names, said, strict=True):
            if judged.failed:
                return failure(one_line(f"{name} failed: {judged.detail}", 400), votes)
        rest = merge(said, names) if len(said) > 1 else said[0]
        scores = [judged.score for judged in said if judged.score is not None]
        if len(scores) < len(said):
            mute = next(i for i, judged in enumerate(said) if judged.score is None)
            why = one_line(f"{names[mute]} gives no score: {said[mute].detail}", 400)
            return dataclasses.replace(
                rest, reply=ERROR, detail=why, score=None, votes=votes, unsure=True
            )
        score = statistics.fmean(scores)
        verdict = self.verdict(score)
        grades = " and ".join(f"{score:.3g}" for score in scores)
        return dataclasses.replace(
            rest,
            reply=verdict or self.if_unsure,
            detail=one_line(f"graded {grades}; {names[0]}: {said[0].detail}", 400),
            score=score,
            votes=votes,
            unsure=verdict is None,
        )

    def verdict(self, score: float) -> Verdict | None:
        """What a score says; None: it is too close to the threshold."""
        above, margin = round(score - self.threshold, DIGITS), round(self.margin, DIGITS)
        if above >= margin:
            return UNSAFE
        return SAFE if above <= -margin else None
