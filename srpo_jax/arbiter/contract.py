"""What holds between an arbiter and whoever asks it: what it is shown, and what it may answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from srpo_jax.arbiter.verdict import Case, Judgement, Verdict
from srpo_jax.data_pipelines.records import Record

BATCH = 64  # cases that an arbiter is given at once when it does not say
# What an arbiter sees of a record without saying that it reads it.
_ALWAYS = ("id", "images", "question")


def reduced(record: Record, reads: Sequence[str]) -> Record:
    """The record with only the fields that an arbiter says it reads, so that a verdict depends on
    nothing that its key leaves out.
    """
    shown = {name: getattr(record, name) for name in (*_ALWAYS, *reads)}
    blank = {"steps": (), "reply": ""}
    return dataclasses.replace(Record("", (), "", (), ""), **{**blank, **shown})


def listed(answers: Any) -> Any:
    """What judge() gave as a list, also of what yields one by one; what has no order as it is."""
    return list(answers) if isinstance(answers, Sequence | Iterator) else answers


def check_count(answers: Any, cases: Sequence[Case]) -> None:
    """Errors: ValueError unless the answers are a list with one for each case."""
    if not isinstance(answers, list):
        raise ValueError(f"judge() gave a {type(answers).__name__}, not a list")
    if len(answers) != len(cases):
        raise ValueError(f"{len(answers)} judgements for {len(cases)} cases")


def sound(answer: Any, case: Case) -> Judgement:
    """The answer, if it is a judgement on this case, its score a float. Errors: ValueError, and
    whatever its fields raise when they are looked at.
    """
    if not isinstance(answer, Judgement):
        raise ValueError(f"gave a {type(answer).__name__}, not a Judgement")
    steps = tuple(_verdict(verdict, f"steps[{i}]") for i, verdict in enumerate(answer.steps))
    if steps and len(steps) != len(case.steps):
        raise ValueError(f"{len(steps)} step verdicts for {len(case.steps)} steps")
    if answer.effective is not None and not isinstance(answer.effective, bool):
        raise ValueError(f"effective is {answer.effective!r}, not True, False or None")
    score = answer.score
    if score is not None:
        if isinstance(score, bool | str):
            raise ValueError(f"score is {score!r}, not a number")
        score = float(score)
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ValueError(f"score is {answer.score!r}, not from 0 to 1")
    for name in ("unsure", "failed"):
        if not isinstance(getattr(answer, name), bool):
            raise ValueError(f"{name} is {getattr(answer, name)!r}, not True or False")
    found = Judgement(
        reply=_verdict(answer.reply, "reply"),
        path=_verdict(answer.path, "path"),
        steps=steps,
        effective=answer.effective,
        detail=answer.detail,
        score=score,
        votes=tuple(_verdict(verdict, f"votes[{i}]") for i, verdict in enumerate(answer.votes)),
        unsure=answer.unsure,
        failed=answer.failed,
        labels=_labels(answer.labels),
    )
    if found.failed and {found.reply, found.path} != {Verdict.ERROR}:
        raise ValueError("a judgement that failed must be ERROR")
    return found


def _labels(labels: Any) -> dict[str, str]:
    found = dict(labels)
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise ValueError("labels must map texts to texts")
    return found


def _verdict(value: Any, name: str) -> Verdict:
    if not isinstance(value, Verdict):
        raise ValueError(f"{name} is {value!r}, not a Verdict")
    return value
