"""Asking an arbiter, such that it cannot shift, lose or invent a verdict.

What the framework promises whatever an arbiter does: a case gets the judgement that was given for
it, or ERROR. An arbiter that raises, or answers with another number of judgements, is asked again
in halves, down to single cases; one that hangs is not, so its batch is ERROR; a judgement of a
wrong shape is ERROR for its case alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from srpo_jax.arbiter.contract import BATCH, check_count, listed, sound
from srpo_jax.arbiter.verdict import Arbiter, Case
from srpo_jax.data_pipelines.verdict_store import unjudged
from srpo_jax.errors import RunFailure, UserError, one_line

READABLE = ("meta", "category", "risky", "steps", "reply", "unsafe_reply", "source", "license")


NOT_ASKED = "not asked: too many before it failed"


class Unanswered(Exception):
    """An arbiter that gave no judgements for the cases it was asked about."""


class Late(Unanswered):
    """It took too long: asking again in halves would take as long again, many times over."""


def describe(arbiter: Arbiter, kind: str) -> dict[str, Any]:
    """What judge.json says of an arbiter: {"arbiter", "kind", "digest", "spec", "reads"}.

    digest: 16 hex digits over name, spec and reads. Errors: UserError for an arbiter whose `reads`
    names something else than fields of a record, whose `spec` is no dict of JSON values, and for
    one of no name that can be printed.
    """
    try:
        reads, batch = getattr(arbiter, "reads", ()), getattr(arbiter, "batch", BATCH)
        spec = getattr(arbiter, "spec", {})
    except Exception as error:  # of a property of a user's own class
        raise UserError(
            f"looking at arbiter {arbiter.name!r} raises {type(error).__name__}: "
            f"{one_line(error, 200)}"
        ) from None
    if not (arbiter.name.strip() and arbiter.name.isprintable()):
        raise UserError(f"the name of an arbiter must be printable, on one line: {arbiter.name!r}")
    if not isinstance(reads, tuple | list) or not all(isinstance(name, str) for name in reads):
        raise UserError(f"arbiter {arbiter.name!r}: its reads is {reads!r}, not a tuple of names")
    unknown = sorted(set(reads) - set(READABLE))
    if unknown:
        raise UserError(
            f"arbiter {arbiter.name!r} says it reads {unknown[0]!r}, which is none of "
            f"{', '.join(READABLE)}"
        )
    if type(batch) is not int or batch < 1:
        raise UserError(f"arbiter {arbiter.name!r}: its batch is {batch!r}, not a number from 1")
    try:
        if not isinstance(spec, dict):
            raise TypeError(f"it is a {type(spec).__name__}, not a dict")
        content = json.dumps([arbiter.name, spec, sorted(reads)], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the spec of arbiter {arbiter.name!r} is not JSON: {error}") from None
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {
        "arbiter": arbiter.name,
        "kind": kind,
        "digest": digest,
        "spec": spec,
        "reads": sorted(reads),
    }


def ask(
    arbiter: Arbiter,
    cases: Sequence[Case],
    *,
    timeout: float,
    too_many_failed: Callable[[int], bool] = lambda failed: False,
) -> list[dict[str, Any]]:
    """The verdict on each case, in order, in the form of verdict_store.unjudged().

    timeout: seconds for one call of the arbiter. too_many_failed: told how many cases have failed
    so far, whenever more do; when it says True the rest is not asked, and is ERROR too.
    A UserError or RunFailure of the arbiter (no such server, a wrong key) passes through.
    """
    failed, stopped = 0, False
    done: list[dict[str, Any]] = []

    def part(cases: Sequence[Case]) -> None:
        nonlocal failed, stopped
        if stopped:
            done.extend(_failed(NOT_ASKED) for _ in cases)
            return
        try:
            answers = _call(arbiter, cases, timeout)
        except Unanswered as error:
            if len(cases) > 1 and not isinstance(error, Late):
                half = len(cases) // 2
                part(cases[:half])
                part(cases[half:])
                return
            for case in cases:
                detail = f"arbiter {arbiter.name!r}, record {case.record.id!r}: {error}"
                done.append(_failed(one_line(detail, 300)))
            failed += len(cases)
            stopped = too_many_failed(failed)
            return
        rows = [checked(answer, case, arbiter.name) for case, answer in zip(cases, answers)]
        done.extend(rows)
        if more := sum(row["failed"] for row in rows):
            failed += more
            stopped = too_many_failed(failed)

    batch = getattr(arbiter, "batch", BATCH)
    try:
        for start in range(0, len(cases), batch):
            part(cases[start : start + batch])
    except BaseException:  # Ctrl-C: its thread will not come to keeping what it has
        getattr(arbiter, "flush", lambda: None)()
        raise
    return done


def _call(arbiter: Arbiter, cases: Sequence[Case], timeout: float) -> list[Any]:
    """arbiter.judge(cases) in a thread that is left behind when it takes too long.

    Errors: Unanswered when it raises, takes too long, or gives no list of that length.
    """
    found: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(listed(arbiter.judge(list(cases))))
        except BaseException as error:  # whatever an arbiter raises, it is the arbiter's
            raised.append(error)

    thread = threading.Thread(target=run, name="arbiter", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise Late(f"no answer within {timeout:g} s")
    if raised:
        if isinstance(raised[0], (UserError, RunFailure, KeyboardInterrupt)):
            raise raised[0]
        raise Unanswered(f"{type(raised[0]).__name__}: {one_line(raised[0], 200)}")
    try:
        check_count(found[0], cases)
    except ValueError as error:
        raise Unanswered(str(error)) from None
    return found[0]


def checked(answer: Any, case: Case, arbiter: str) -> dict[str, Any]:
    """A judgement as a row; ERROR, with the reason, for what is no judgement on this case."""
    try:
        return _row(answer, case)
    except Exception as error:  # whatever its fields do when they are looked at
        return _failed(f"arbiter {arbiter!r}, record {case.record.id!r}: {one_line(error, 160)}")


def _failed(why: str) -> dict[str, Any]:
    return {**unjudged(_storable(why)), "failed": True}


def _storable(text: str) -> str:
    """The text without what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _row(answer: Any, case: Case) -> dict[str, Any]:
    found = sound(answer, case)
    return {
        "reply_verdict": found.reply.value,
        "path_verdict": found.path.value,
        "step_verdicts": [verdict.value for verdict in found.steps],
        "effective": found.effective,
        "detail": _storable(one_line(found.detail, 1000)),
        "score": found.score,
        "votes": [verdict.value for verdict in found.votes],
        "unsure": found.unsure,
        "failed": found.failed,
        "labels": {_storable(name): _storable(label) for name, label in found.labels.items()},
    }
