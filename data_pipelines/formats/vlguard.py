"""VLGuard: safe and unsafe pictures with instructions and a good response to each.

A JSON list: `id`, `image`, `safe`, `instr-resp` (a list of instructions with their response), and
`harmful_category`. Every instruction is a question of its own: the responses are what to say, and
nothing says what not to. Pictures lie in a folder `train` or `test` beside it: name it by --images.
It may be used for research only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item

ENTRIES = "instr-resp"
KINDS = ("instruction", "safe_instruction", "unsafe_instruction")


class VlGuard(Format):
    """A picture with one or two instructions."""

    name = "vlguard"
    title = "VLGuard: instructions on safe and unsafe pictures, with good responses"
    reads = frozenset(("id", "image", "safe", ENTRIES))
    license = "research only (VLGuard)"
    writes = False

    def matches(self, row: Mapping[str, Any]) -> bool:
        return ENTRIES in row

    def item(self, row: Mapping[str, Any]) -> list[Item]:
        cells = fields.pictures(row, "image")
        if row.get("safe") is None:
            raise ValueError("field 'safe' is missing")
        safe = fields.one_of(row["safe"], "safe", (True, False))
        extra = fields.rest_of(row, self.reads)
        found = []
        for i, entry in enumerate(fields.items(row, ENTRIES)):
            entry = fields.mapping(entry, f"{ENTRIES}[{i}]")
            kind = next((kind for kind in KINDS if entry.get(kind) is not None), None)
            if kind is None:
                raise ValueError(f"{ENTRIES}[{i}] has none of {', '.join(KINDS)}")
            found.append(
                Item(
                    id=f"{row['id']}.{i}" if row.get("id") is not None else "",
                    question=fields.text(entry, kind),
                    images=cells,
                    reference=(fields.text(entry, "response"),),
                    risky=not safe or kind == "unsafe_instruction",
                    meta={"kind": kind, **({"source_fields": extra} if extra else {})},
                )
            )
        if not found:
            raise ValueError(f"{ENTRIES} is empty")
        return found
