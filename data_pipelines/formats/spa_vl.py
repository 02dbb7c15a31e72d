"""SPA-VL: preference pairs on safety, one picture a row (arXiv 2406.12030).

A JSON list, or Parquet from the Hugging Face Hub: `id` (a number), `image`, `question`, `chosen`,
`rejected`. A question may show its <image> at either end, with newlines or without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair
from srpo_jax.data_pipelines.records import IMAGE_MARKER


class SpaVl(Format):
    """A picture, a question and two replies."""

    name = "spa_vl"
    title = "SPA-VL: pairs on safety, one picture each"
    reads = frozenset(("id", "image", "question", "chosen", "rejected"))
    license = "CC-BY-4.0"
    container = "json"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.reads - {"id"} <= set(row) and (
            type(row.get("id")) is int or isinstance(row["image"], Mapping)
        )

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = fields.pictures(row, "image")
        if len(cells) != 1:
            raise ValueError(f"{len(cells)} pictures; one is shown")
        question = fields.text(row, "question").replace(IMAGE_MARKER, "").strip()
        extra = fields.rest_of(row, self.reads)
        number = row.get("id")
        return Item(
            id="" if number is None else str(number),
            question=question,
            images=cells,
            meta={"source_fields": extra} if extra else {},
            **pair(fields.text(row, "chosen"), fields.text(row, "rejected")),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        if len(pair.item.images) != 1:
            raise ValueError(f"{len(pair.item.images)} pictures; SPA-VL has one")
        name = pair.id.removeprefix(f"{self.name}-")
        return {
            "id": int(name) if name.isdecimal() else name,
            "image": pair.item.images[0],
            "question": pair.item.question.replace(IMAGE_MARKER, "").strip(),
            "chosen": pair.chosen_text,
            "rejected": pair.rejected_text,
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }
