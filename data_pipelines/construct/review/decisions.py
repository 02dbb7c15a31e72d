"""The file that the review page saves: who decided what about which item; checked first."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from srpo_jax.data_pipelines.construct.review.items import FIELDS, LABELS, RECORDS, Review
from srpo_jax.errors import UserError
from srpo_jax.files import read_json

FORMAT = "srpo_jax review 1"
CHOICES = {RECORDS: ("accept", "edit", "reject"), LABELS: ("SAFE", "UNSAFE", "skip")}
GRADES = ("difficulty", "informative")  # 1 to 3
MAX_NOTE = 4000
_KNOWN = {"decision", "edits", "note", *GRADES}


@dataclass(frozen=True)
class Decision:
    """Of one reviewer about one item. edits: the fields that were changed."""

    decision: str
    edits: Mapping[str, Any] = field(default_factory=dict)
    difficulty: int | None = None
    informative: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Reviewer:
    """A reviewer and the decisions, by key."""

    name: str
    decisions: dict[str, Decision]


def read_decisions(path: pathlib.Path, review: Review) -> Reviewer:
    """The decisions of a file about this review. Errors: UserError that names file and item."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; the page saves it, as decisions-NAME.json")
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise UserError(f"{path} is no file of decisions of this version")
    if data.get("review") != review.digest:
        raise UserError(
            f"{path} is about another page: what it shows has changed since, or it is of "
            "another folder"
        )
    name = data.get("reviewer")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(f"{path}: the reviewer has no name; write it on the page and save again")
    return Reviewer(name.strip(), checked(data.get("decisions"), review, str(path)))


def checked(rows: Any, review: Review, where: str) -> dict[str, Decision]:
    """Decisions by key. Errors: UserError."""
    if not isinstance(rows, dict):
        raise UserError(f"{where}: has no decisions")
    items = {item["key"]: item for item in review.items}
    found = {}
    for key, row in rows.items():
        try:
            if key not in items:
                raise ValueError("there is no such item")
            found[key] = _decision(row, review.kind, items[key])
        except ValueError as error:
            raise UserError(f"{where}: {key}: {error}") from None
    if not found:
        raise UserError(f"{where}: nothing was decided")
    return found


def _decision(row: Any, kind: str, item: Mapping[str, Any]) -> Decision:
    if not isinstance(row, dict) or set(row) - _KNOWN:
        raise ValueError(f"must have decision, and may have {', '.join(sorted(_KNOWN))}")
    decision, edits, note = row.get("decision"), row.get("edits", {}), row.get("note", "")
    if decision not in CHOICES[kind]:
        raise ValueError(f"decision is {decision!r}, not one of {', '.join(CHOICES[kind])}")
    if not isinstance(edits, dict) or (edits and decision != "edit"):
        raise ValueError("has edits without being an edit")
    if decision == "edit" and not edits:
        raise ValueError("is an edit that changes nothing: accept it instead")
    for name, value in edits.items():
        _check_edit(name, value, item)
    for name in GRADES:
        if row.get(name) not in (None, 1, 2, 3) or isinstance(row.get(name), bool):
            raise ValueError(f"{name} must be 1, 2 or 3")
    if not isinstance(note, str) or len(note) > MAX_NOTE:
        raise ValueError(f"note must be text of at most {MAX_NOTE} characters")
    return Decision(decision, edits, row.get("difficulty"), row.get("informative"), note)


def _check_edit(name: str, value: Any, item: Mapping[str, Any]) -> None:
    if name not in FIELDS or item[name] is None:
        raise ValueError(f"edits {name!r}, which it does not have")
    texts = value if name == "steps" else [value]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"edits {name} into something that it cannot be")
    if not all(text.strip() for text in texts):
        raise ValueError(f"leaves {name} empty: reject it instead")
