"""MIS: questions about two pictures that are risky together (arXiv 2501.18533), Apache-2.0.

`question`, `image_path1`, `image_path2`, `category`, `sub_category`, `id`. The questions come
without answers: to explore, or to test on. Its training file holds conversations, which the format
llava reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item, question_text


class Mis(Format):
    """Two pictures and a question."""

    name = "mis"
    title = "MIS: two pictures that are risky together, without answers"
    reads = frozenset(("id", "question", "image_path1", "image_path2"))
    license = "Apache-2.0"
    writes = False

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"question", "image_path1", "image_path2"} <= set(row)

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = tuple(fields.text(row, name) for name in ("image_path1", "image_path2"))
        extra = fields.rest_of(row, self.reads)
        return Item(
            id=str(row.get("id", "")),
            question=question_text(fields.text(row, "question"), len(cells)),
            images=cells,
            risky=True,
            meta={"source_fields": extra} if extra else {},
        )
