"""RLHF-V: corrected answers against the original ones (arXiv 2312.00849), CC BY-NC 4.0.

Two layouts: `question`, `chosen`, `rejected` with the picture in `BUFFER`, and newer ones with the
picture in `image` and the three texts as JSON in `text`. (LLaMA-Factory has a copy of its own.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair, question_text
from srpo_jax.data_pipelines.records import parse_object

TEXTS = ("question", "chosen", "rejected")


class RlhfV(Format):
    """A picture, a question and two replies."""

    name = "rlhf_v"
    title = "RLHF-V: corrected answers against hallucinated ones"
    reads = frozenset(("id", "idx", "IMAGE_ID", "BUFFER", "image", "text", *TEXTS))
    license = "CC-BY-NC-4.0"
    container = "parquet"

    def matches(self, row: Mapping[str, Any]) -> bool:
        if "BUFFER" in row:
            return set(TEXTS) <= set(row)
        text = row.get("text")
        return "image" in row and isinstance(text, str) and text.lstrip().startswith("{")

    def item(self, row: Mapping[str, Any]) -> Item:
        texts: Mapping[str, Any] = row
        if row.get("text") is not None:
            try:
                texts = parse_object(fields.text(row, "text").encode())
            except (ValueError, UnicodeEncodeError) as error:
                raise ValueError(f"text: {error}") from None
        cells = fields.pictures(row, "BUFFER", "image")
        extra = fields.rest_of(row, self.reads)
        number = next((row[n] for n in ("id", "idx", "IMAGE_ID") if row.get(n) is not None), "")
        return Item(
            id=str(number),
            question=question_text(fields.text(texts, "question"), len(cells)),
            images=cells,
            meta={"source_fields": extra} if extra else {},
            **pair(fields.text(texts, "chosen"), fields.text(texts, "rejected")),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        if len(pair.item.images) != 1:
            raise ValueError(f"{len(pair.item.images)} pictures; RLHF-V has one")
        said = (pair.item.question, pair.chosen_text, pair.rejected_text)
        return {
            "idx": pair.id.removeprefix(f"{self.name}-"),
            "image": pair.item.images[0],
            "text": json.dumps(dict(zip(TEXTS, said)), ensure_ascii=False),
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }
