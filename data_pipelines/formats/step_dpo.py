"""Step-DPO: pairs of a right and a wrong next step behind the same steps (arXiv 2406.18629).

Read from Step-DPO c4902fd: `prompt`, `initial_reason_steps`, `chosen`, `rejected`. The
initial steps are cut in front of every "Step 3:", letter by letter, so that joined they are what
the file says; a last heading without a text belongs to the answers. No end of turn stands behind a
step, there or here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair

_STEP = re.compile(r"(?<![^\s])(?=Step\s*\d+\s*[:.])")
_HEADING = re.compile(r"Step\s*\d+\s*[:.]\s*")


class StepDpo(Format):
    """One branch point a row."""

    name = "step_dpo"
    title = "Step-DPO: the first wrong step against a right one"
    reads = frozenset(("id", "prompt", "initial_reason_steps", "chosen", "rejected"))
    license = "CC-BY-NC-4.0"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"prompt", "initial_reason_steps", "chosen", "rejected"} <= set(row)

    def item(self, row: Mapping[str, Any]) -> Item:
        before, lead = cut(fields.optional(row, "initial_reason_steps"))
        chosen, rejected = (lead + fields.text(row, name) for name in ("chosen", "rejected"))
        extra = fields.rest_of(row, self.reads)
        meta: dict[str, Any] = {"source_fields": extra} if extra else {}
        if lead:
            meta["lead"] = lead
        return Item(
            id=str(row.get("id", "")),
            question=fields.text(row, "prompt"),
            meta=meta,
            **pair(chosen, rejected, before, ended=False),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        if pair.item.images:
            raise ValueError("it has pictures; Step-DPO is text alone")
        lead = str(pair.item.meta.get("lead", ""))
        texts = [pair.chosen.text, pair.rejected.text]
        if not all(text.startswith(lead) for text in texts):
            lead = ""
        return {
            "id": pair.id,
            "prompt": pair.item.question,
            "initial_reason_steps": "".join(pair.prefix) + lead,
            "chosen": texts[0][len(lead) :],
            "rejected": texts[1][len(lead) :],
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }


def cut(text: str) -> tuple[list[str], str]:
    """(steps, the last heading if nothing stands behind it): joined they are the text."""
    starts = [found.start() for found in _STEP.finditer(text)]
    if starts and text[: starts[0]].strip():
        starts = [0, *starts]
    elif starts:
        starts[0] = 0
    else:
        starts = [0] if text.strip() else []
    pieces = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)])]
    lead = pieces.pop() if pieces and _HEADING.fullmatch(pieces[-1]) else ""
    return pieces, lead
