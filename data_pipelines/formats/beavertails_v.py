"""BeaverTails-V / SafeRLHF-V: two replies, which is safer and which is more helpful.

`question`, `image`, `response_1`, `response_2`, `safer_response_id`, `more_helpful_response_id`
(1 or 2, as numbers or as text). The safer one is the chosen one here. Where the more helpful one is
the other, meta.more_helpful says so: nothing of the file's second opinion is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair, question_text


class BeaverTailsV(Format):
    """A question with two replies, compared twice."""

    name = "beavertails_v"
    title = "BeaverTails-V / SafeRLHF-V: two replies, compared for safety and for help"
    reads = frozenset(("id", "question", "image", "images", "response_1", "response_2")) | {
        "safer_response_id",
        "more_helpful_response_id",
    }
    license = "CC-BY-NC-4.0"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"question", "response_1", "response_2"} <= set(row)

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = fields.pictures(row, "image", "images")
        replies = {n: fields.text(row, f"response_{n}") for n in (1, 2)}
        if row.get("safer_response_id") is None:
            raise ValueError("field 'safer_response_id' is missing")
        safer = fields.one_of(row["safer_response_id"], "safer_response_id", (1, 2))
        meta: dict[str, Any] = {"safer": safer}
        if row.get("more_helpful_response_id") is not None:
            name = "more_helpful_response_id"
            meta["more_helpful"] = fields.one_of(row[name], name, (1, 2))
        if extra := fields.rest_of(row, self.reads):
            meta["source_fields"] = extra
        return Item(
            id=str(row.get("id", "")),
            question=question_text(fields.text(row, "question"), len(cells)),
            images=cells,
            meta=meta,
            **pair(replies[safer], replies[3 - safer]),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        if len(pair.item.images) > 1:
            raise ValueError(f"{len(pair.item.images)} pictures; one is shown there")
        safer = 2 if pair.item.meta.get("safer") == 2 else 1
        texts = {safer: pair.chosen_text, 3 - safer: pair.rejected_text}
        more = pair.item.meta.get("more_helpful")
        return {
            "id": pair.id,
            "question": pair.item.question,
            **({"image": pair.item.images[0]} if pair.item.images else {}),
            "response_1": texts[1],
            "response_2": texts[2],
            "safer_response_id": safer,
            **({} if more is None else {"more_helpful_response_id": more}),
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }
