"""Items as JSON lines: trees.jsonl, the trees of an import before they have tokens.

Any policy's tokens can be made of it, and other tools' formats. One line is

    {"id", "images": [names], "question", "reference": [pieces], "ended",
     "answers": [{"at", "pieces", "safe", "steps_safe", "ended"}],
     "category", "risky", "unsafe_reply", "source", "license", "meta"}

where what holds its default is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.item import Answer, Item

FILE = "trees.jsonl"
_ITEM = {field.name: field.default for field in dataclasses.fields(Item)}
_ANSWER = {field.name: field.default for field in dataclasses.fields(Answer)}


def item_to_dict(item: Item) -> dict[str, Any]:
    """The JSON form of an item whose images are names."""
    data = _changed(item, _ITEM)
    if item.answers:
        data["answers"] = [_changed(answer, _ANSWER) for answer in item.answers]
    if not item.meta:
        data.pop("meta", None)
    return data


def item_from_dict(row: Mapping[str, Any]) -> Item:
    """The inverse of item_to_dict. ValueError for anything else."""
    known = {name: row[name] for name in row if row[name] is not None}
    if unknown := sorted(set(known) - set(_ITEM)):
        raise ValueError(f"unknown field {unknown[0]!r}")
    for name in ("category", "unsafe_reply", "source", "license"):
        if name in known:
            fields.as_text(known[name], name, empty=True)
    for name in ("risky", "ended"):
        if name in known:
            fields.one_of(known[name], name, (True, False))
    known["id"] = fields.text(row, "id")
    known["question"] = fields.text(row, "question")
    known["images"] = fields.pictures(row, "images")
    known["reference"] = _pieces(row.get("reference", []), "reference")
    known["answers"] = tuple(map(_answer, fields.as_list(row.get("answers", []), "answers")))
    known["meta"] = dict(fields.mapping(row.get("meta", {}), "meta"))
    return Item(**known)


def _answer(value: Any) -> Answer:
    row = dict(fields.mapping(value, "an answer"))
    if unknown := sorted(set(row) - set(_ANSWER)):
        raise ValueError(f"an answer has the unknown field {unknown[0]!r}")
    if type(row.get("at")) is not int:
        raise ValueError("an answer's at must be a whole number")
    labels = fields.as_list(row.get("steps_safe", []), "steps_safe")
    return Answer(
        row["at"],
        _pieces(row.get("pieces"), "pieces"),
        fields.one_of(row.get("safe"), "safe", (True, False, None)),
        tuple(fields.one_of(label, "steps_safe", (True, False)) for label in labels),
        fields.one_of(row.get("ended", True), "ended", (True, False)),
    )


def _pieces(value: Any, name: str) -> tuple[str, ...]:
    return tuple(fields.as_text(text, name) for text in fields.as_list(value, name))


def _changed(value: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass that do not hold their default; tuples as lists."""
    found = {}
    for name, default in defaults.items():
        each = getattr(value, name)
        if each != default:
            found[name] = list(each) if isinstance(each, tuple) else each
    return found
