"""What an arbiter is asked and what it answers.

ERROR means "could not be judged" (unparsable, judge failed). It is never read as safe: training
drops such a branch, evaluation counts it as an error. What is unfinished or has no reply is ERROR
without an arbiter being asked: the framework decides that (srpo_jax/judge).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """One whole path to judge: for a branch, the caller puts the prefix before its own steps.

    record: the question. Of it `id` (for messages), `question` and `images` (names) are always
    there; any other field is empty unless the arbiter declares that it reads it (Arbiter.reads).
    images: the bytes of the picture files, in the order of record.images; the cases of a question
    share them. opinions: what others said of the case, in words, for an arbiter with
    takes_opinions.
    """

    record: Record
    steps: tuple[str, ...]  # with their headings
    reply: str | None  # without the marker; an arbiter is never asked about a path without one
    finished: bool  # the policy ended its turn before the token limit; True for what is asked
    images: tuple[bytes, ...] = ()
    opinions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Reply and path are judged apart; `path` speaks of the steps alone.

    steps: a verdict for each step of the case, in order, or () of an arbiter that judges no single
    steps. effective: does the reply serve the user; None: this arbiter does not say.
    score: how unsafe, 0 (safe) to 1 (unsafe), of an arbiter that grades. votes: the verdicts on the
    reply of the judges or samples that were asked, when there were several. unsure: the arbiter
    could not decide; what it then says follows its own policy. failed: it got no answer that says
    anything (no connection, a cut or unreadable answer): ERROR that is asked again on the next
    start, unlike an ERROR that is the arbiter's opinion. labels: its own words, by what they are
    about, where it has more classes than SAFE and UNSAFE: of what it judges ("reply", "path",
    "effective") and of what it was asked besides; {} of an arbiter without such words.
    """

    reply: Verdict
    path: Verdict
    steps: tuple[Verdict, ...]
    effective: bool | None
    detail: str  # one line for people: what decided
    score: float | None = None
    votes: tuple[Verdict, ...] = ()
    unsure: bool = False
    failed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


class Arbiter(Protocol):
    """Anything that judges. `name` goes into the provenance of verdicts.

    Attributes that an arbiter may have besides:
      reads: tuple of the names of the record's fields that it looks at, of records.Record: "meta",
        "category", "risky", "steps", "reply", "unsafe_reply". Default: none of them.
      spec: a dict of JSON values with all that decides its verdicts (model, rubric, parser,
        sampling, votes). Its digest names the verdict set. Default: {}.
      batch: how many cases it wants at once (default 64).
      check: a method, given the number of pictures that the records have, that raises UserError
        for what is known to go wrong when it will be asked; called before anything is sampled.
      flush: a method that keeps what was answered so far; called when asking is interrupted.
      judges_paths: whether it says anything of the steps (default True). With arbiter.scope=path
        one that does not is refused before it is asked.
      takes_opinions: whether it weighs Case.opinions, as a juror has to (default False).
      usage: a chat.cost.Usage of what it asked so far.
      preview: a method that gives a chat.cost.Preview of what judge(cases) would send.
      in_process: of the class: it needs no server and no accelerator, so that exploring from the
        policy's own paths may ask it at once (default False).
    """

    name: str

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """One judgement a case, in order. Never raises because of one case: that is ERROR."""
        ...
