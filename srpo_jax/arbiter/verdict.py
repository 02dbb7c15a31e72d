"""What an arbiter is asked and what it answers.

ERROR means "could not be judged" (unparsable, unfinished, judge failed). It is never read as
safe: training drops such a branch, evaluation counts it as an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from srpo_jax.data_pipelines.records import Record


class Verdict(StrEnum):
    """A str, so that it goes into JSON and msgpack as it is."""

    SAFE = "SAFE"
    UNSAFE = "UNSAFE"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Case:
    """One whole path to judge: for a branch, the caller puts the prefix before its own steps."""

    record: Record
    steps: tuple[str, ...]  # one line each, with their headings
    reply: str | None  # without the "Reply:" marker; None: the path never got to one
    finished: bool  # the policy ended its turn before the token limit


@dataclass(frozen=True)
class Judgement:
    """Reply and path are judged apart; `path` speaks of the steps alone."""

    reply: Verdict
    path: Verdict
    steps: tuple[Verdict, ...]  # one for each step of the case
    effective: bool | None  # does the reply serve the user; None: this arbiter does not say
    detail: str  # one line for people: what decided


class Arbiter(Protocol):
    """Anything that judges. `name` goes into the provenance of reasoning-tree records."""

    name: str

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """One judgement a case, in order. Never raises because of one case: that is ERROR."""
        ...
