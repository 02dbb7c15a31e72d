"""Our own files: trees.jsonl of an import, and records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item
from srpo_jax.data_pipelines.exchange.texts import FILE, item_from_dict, item_to_dict


class Srpo(Format):
    """Items as they are."""

    name = "srpo"
    title = "trees.jsonl of an earlier import"
    file = FILE.removesuffix(".jsonl")

    def matches(self, row: Mapping[str, Any]) -> bool:
        ours = bool({"answers", "ended"} & set(row)) or isinstance(row.get("reference"), list)
        return {"id", "question"} <= set(row) and ours

    def item(self, row: Mapping[str, Any]) -> Item:
        return item_from_dict(row)

    def rows(self, item: Item) -> Iterator[dict[str, Any]]:
        yield item_to_dict(item)
