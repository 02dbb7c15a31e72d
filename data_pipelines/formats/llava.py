"""LLaVA's conversations: `id`, `image` (or `images`), `conversations` of human and gpt.

Of a dialogue the first question with its reply is read; later turns, which depend on it, are kept
in meta.source_fields and counted. The replies are what to say: to train on, or to explore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, facts, marked, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, question_text

ROLES = {"human": fields.USER, "gpt": fields.ASSISTANT, "system": fields.SYSTEM}


class Llava(Format):
    """A question and its reply, with a picture or without."""

    name = "llava"
    title = "LLaVA conversations: questions with their replies"
    reads = frozenset(("id", "image", "images", "conversations"))
    container = "json"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return "conversations" in row and "chosen" not in row

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = fields.pictures(row, "image", "images")
        if row.get("conversations") is None:
            raise ValueError("field 'conversations' is missing")
        words = {"role": "from", "content": "value", "roles": ROLES}
        found = fields.turns(row["conversations"], "conversations", **words)
        start = 1 if found and found[0].role == fields.SYSTEM else 0
        head, later = found[: start + 2], found[start + 2 :]
        if len(head) < start + 2:
            raise ValueError("conversations hold no question with its reply")
        turn, system = fields.one_question(head[:-1], "the beginning of conversations")
        reply = fields.one_reply(head[-1:], "the reply to the first question")
        extra = fields.rest_of(row, self.reads)
        if system:
            extra["system"] = system
        if later:
            extra["later_turns"] = [{"role": each.role, "text": each.text} for each in later]
        return Item(
            id=str(row.get("id", "")),
            question=question_text(turn.text, len(cells)),
            images=cells,
            reference=(reply,),
            meta={"source_fields": extra} if extra else {},
        )

    def rows(self, item: Item) -> Iterator[dict[str, Any]]:
        if not item.reference:
            return
        images = list(item.images)
        shown = {"image": images[0]} if len(images) == 1 else {"images": images}
        yield {
            "id": item.id.removeprefix(f"{self.name}-"),
            **(shown if images else {}),
            "conversations": [
                {"from": "human", "value": marked(item.question, len(images))},
                {"from": "gpt", "value": item.prefix(len(item.reference))},
            ],
            **facts(item),
            **{n: v for n, v in own_fields(item, self.name).items() if n != "later_turns"},
        }
