"""What reviewers' decisions make of records: which stay, how they read now, and how far people
agree.

A record stays that somebody accepted or edited and nobody rejected. What nobody decided on is left
out and counted: unreviewed is not accepted.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.construct.guard import MINORS, about_minors
from srpo_jax.data_pipelines.construct.review.decisions import Decision, Reviewer
from srpo_jax.data_pipelines.construct.review.items import FIELDS, Review
from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.records import Record, record_from_dict, record_to_dict
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import write_text

META = "review"  # the key of a record's meta


def apply(
    records: Sequence[Record], review: Review, reviewers: Sequence[Reviewer]
) -> tuple[list[Record], dict[str, Any]]:
    """The records that stay, in their order, and counts: {"kept", "edited", "rejected",
    "undecided", "reviewers", "accepted_share", "notes"}. accepted_share: of the decided ones, by
    their weights.

    Errors: UserError for records that are not what was reviewed, for two edits of one field that
    differ, and for an edit that no record can hold.
    """
    said = {
        item["key"]: {
            r.name: r.decisions[item["key"]] for r in reviewers if item["key"] in r.decisions
        }
        for item in review.items
    }
    _check_same(records, review)
    kept, counts = [], Counter()
    for record in records:
        about = said.get(record.id, {})
        words = {each.decision for each in about.values()}
        if not about:
            counts["undecided"] += 1
        elif "reject" in words:
            counts["rejected"] += 1
        else:
            counts["edited"] += "edit" in words
            kept.append(_edited(record, about))
    weights = {item["key"]: item["weight"] for item in review.items}
    decided = {key: weights[key] for key, about in said.items() if about}
    stays = {record.id for record in kept}
    share = sum(w for key, w in decided.items() if key in stays) / (sum(decided.values()) or 1)
    summary = {
        "digest": review.digest,
        "kept": len(kept),
        **{name: counts[name] for name in ("edited", "rejected", "undecided")},
        "reviewers": {r.name: len(r.decisions) for r in reviewers},
        "sampled": review.sampled,
        "accepted_share": share if decided else None,
        "notes": [
            {"id": key, "reviewer": name, "decision": each.decision, "note": each.note}
            for key, about in said.items()
            for name, each in about.items()
            if each.note.strip()
        ],
    }
    return kept, summary


def decision_table(one: Reviewer, other: Reviewer) -> dict[tuple[str, str], int]:
    """{(what one says, what the other says): how often} of the items that both decided on; an edit
    accepts.
    """
    table: Counter[tuple[str, str]] = Counter()
    for key in one.decisions.keys() & other.decisions.keys():
        table[_word(one.decisions[key]), _word(other.decisions[key])] += 1
    return dict(table)


def label_rows(review: Review, reviewer: Reviewer) -> list[dict[str, Any]]:
    """Rows for `srpo judge calibrate --labels`: what was skipped has no verdict."""
    names = ("id", "at", "k", "question", "images", "text", "sampled_by")
    rows = []
    for item in review.items:
        decision = reviewer.decisions.get(item["key"])
        verdict = decision.decision if decision and decision.decision != "skip" else ""
        note = {"note": decision.note} if decision and decision.note else {}
        rows.append({**{name: item[name] for name in names}, "reply_verdict": verdict, **note})
    return rows


def write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As JSONL, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _word(decision: Decision) -> str:
    return "accept" if decision.decision == "edit" else decision.decision


def _check_same(records: Sequence[Record], review: Review) -> None:
    there = {record.id: record for record in records}
    for item in review.items:
        record = there.get(item["key"])
        texts = None if record is None else record_to_dict(record)
        same = texts is not None and [
            texts["question"],
            list(record.steps),  # pyright: ignore[reportOptionalMemberAccess]
            record.reply,  # pyright: ignore[reportOptionalMemberAccess]
            record.unsafe_reply,  # pyright: ignore[reportOptionalMemberAccess]
        ] == [item[name] for name in FIELDS]
        if not same:
            raise UserError(
                f"record {item['key']!r} is no longer what was reviewed: make the page again"
            )


def _edited(record: Record, about: Mapping[str, Decision]) -> Record:
    edits: dict[str, Any] = {}
    for name, decision in about.items():
        for part, value in decision.edits.items():
            if edits.setdefault(part, value) != value:
                raise UserError(
                    f"record {record.id!r}: {name} edits {part} in another way than a reviewer "
                    "before: agree on one"
                )
    said: dict[str, Any] = {"decisions": sorted(each.decision for each in about.values())}
    for grade in ("difficulty", "informative"):
        given = [v for each in about.values() if (v := getattr(each, grade)) is not None]
        if given:
            said[grade] = sum(given) / len(given)
    if "steps" in edits:
        edits["steps"] = tuple(edits["steps"])
    found = dataclasses.replace(record, **edits, meta={**record.meta, META: said})
    try:
        if about_minors(record_to_dict(found)):
            raise ValueError(MINORS)
        record_from_dict(record_to_dict(found), record.root)
        if found.steps:
            kinds = ["lines", "ssui"] if record.steps[0].startswith(SSUI[0]) else ["lines"]
            for kind in kinds if edits else ():
                make_format(kind).check(found.steps, found.reply)
    except ValueError as error:
        raise UserError(f"record {record.id!r}, as edited: {one_line(error, 200)}") from None
    return found
