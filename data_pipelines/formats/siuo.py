"""SIUO: safe pictures and safe questions whose answer may harm (arXiv 2406.15279), CC BY-NC 4.0.

siuo_gen.json: `question_id`, `image`, `question`, `category`, `safety_warning`, `reference_answer`;
siuo_mcqa.json has `options` and `correct_option` besides, which are kept. It is a test set, for
research only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item, question_text

# Its nine domains, as far as ours say the same.
CATEGORIES = {
    "privacy violation": "privacy_violations",
    "morality": "moral_violations",
    "religion beliefs": "offensive_religious_beliefs",
    "dangerous behavior": "dangerous_behavior",
    "illegal activities & crime": "illegal_crimes",
    "discrimination & stereotyping": "discrimination_and_stereotypes",
    "controversial topics, politics": "political_controversies",
}


class Siuo(Format):
    """A picture, a question, and what to watch for."""

    name = "siuo"
    title = "SIUO: a test set of safe inputs whose answers may harm"
    reads = frozenset(("question_id", "image", "question", "reference_answer"))
    license = "CC-BY-NC-4.0, research only"
    writes = False

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"question_id", "image", "question"} <= set(row) and bool(
            {"safety_warning", "options"} & set(row)
        )

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = fields.pictures(row, "image")
        extra = fields.rest_of(row, self.reads)
        reply = fields.optional(row, "reference_answer")
        return Item(
            id=str(row.get("question_id", "")),
            question=question_text(fields.text(row, "question"), len(cells)),
            images=cells,
            reference=(reply,) if reply.strip() else (),
            category=CATEGORIES.get(str(row.get("category", "")).strip().lower()),
            risky=True,
            meta={"source_fields": extra} if extra else {},
        )
