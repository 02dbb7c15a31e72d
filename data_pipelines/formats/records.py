"""Our own records, as docs/data.md describes them: to check, to export, or to make trees of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item

KNOWN = ("id", "images", "question", "reference", "category", "risky", "unsafe_reply") + (
    ("source", "license", "meta")
)


class Records(Format):
    """A question and its reference path; a line a step."""

    name = "records"
    title = "records of srpo_jax"
    reads = frozenset(KNOWN)
    writes = False

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"id", "images", "question"} <= set(row) <= self.reads

    def item(self, row: Mapping[str, Any]) -> Item:
        if unknown := sorted(set(row) - self.reads):
            raise ValueError(f"unknown field {unknown[0]!r} (known: {', '.join(KNOWN)})")
        path: tuple[str, ...] = ()
        if row.get("reference") is not None:
            told = fields.mapping(row["reference"], "reference")
            steps = fields.items(told, "steps")
            steps = [f"{fields.as_text(step, 'a step').rstrip()}\n" for step in steps]
            path = (*steps, fields.text(told, "reply"))
        risky = fields.one_of(row.get("risky"), "risky", (True, False, None))
        return Item(
            id=fields.text(row, "id"),
            question=fields.text(row, "question"),
            images=fields.pictures(row, "images"),
            reference=path,
            category=fields.optional(row, "category") or None,
            risky=risky,
            unsafe_reply=fields.optional(row, "unsafe_reply") or None,
            source=fields.optional(row, "source"),
            license=fields.optional(row, "license"),
            meta=dict(fields.mapping(row.get("meta") or {}, "meta")),
        )
