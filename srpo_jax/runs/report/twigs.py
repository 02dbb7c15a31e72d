"""The branches of a tree as they are shown: equal ones of a point taken together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo_jax.runs.report.folds import step_verdicts


@dataclass(frozen=True)
class Twig:
    """Branches of one point with the same text, which a small policy has many of."""

    branch: Mapping[str, Any]
    count: int
    steps: tuple[str, ...]
    reply: str | None
    verdicts: tuple[str, ...]  # of the branch's own steps
    weight: float  # 0..1, by mean log-prob per token within the tree
    anchor: str

    @property
    def verdict(self) -> str:
        return self.branch["reply_verdict"]

    @property
    def is_open(self) -> bool:
        """Whether nothing of it has to be closed."""
        return {self.verdict, *self.verdicts} == {"SAFE"}

    @property
    def per_token(self) -> float | None:
        """None of a branch that the policy has not sampled."""
        return per_token(self.branch)


def per_token(branch: Mapping[str, Any]) -> float | None:
    """The mean log-prob of a branch's tokens, None where it is not known."""
    logp = branch["logp"]
    return None if logp is None else logp / max(1, len(branch["tokens"]))


def make_twigs(tree: Mapping, index: int) -> list[Twig]:
    """Branches in the order of their points. index: of the tree on the page, for the anchors."""
    groups: dict[tuple[int, str, str], list[Mapping]] = {}
    for branch in sorted(tree["branches"], key=lambda b: (b["at"], b["k"])):
        key = (branch["at"], branch["text"], branch["reply_verdict"])
        groups.setdefault(key, []).append(branch)
    means = [per_token(same[0]) for same in groups.values()]
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    twigs = []
    for number, (same, mean) in enumerate(zip(groups.values(), means, strict=True)):
        branch = same[0]
        steps, reply = tuple(branch["step_texts"]), branch["reply_text"]
        at, path = branch["at"], branch["path_verdict"]
        own = tuple(step_verdicts(at + len(steps), branch["step_verdicts"], path)[at:])
        weight = 1.0 if mean is None or high <= low else (mean - low) / (high - low)
        anchor = f"t{index}b{number}"
        twigs.append(Twig(branch, len(same), steps, reply, own, weight, anchor))
    return twigs
