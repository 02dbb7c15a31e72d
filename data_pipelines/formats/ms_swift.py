"""ms-swift's standard rows: `messages`, with `rejected_response` or `rejected_messages`, `images`.

Read from ms-swift 4.6 (swift/dataset/preprocessor/core.py). Rows of query and response are read,
too. Names of pictures are sought in the working directory there, or in ROOT_IMAGE_DIR: README.md
of what is written says so.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, marked, own_fields
from srpo_jax.data_pipelines.exchange.item import Answer, Item, pair, question_text
from srpo_jax.files import write_text

README = """# Preference pairs for ms-swift

{count} pairs, written by srpo_jax. Names of pictures begin in this folder:

    ROOT_IMAGE_DIR=THIS_FOLDER swift rlhf --rlhf_type dpo --dataset THIS_FOLDER/{file} ...
"""


class MsSwift(Format):
    """Pairs, or labelled or single replies, one a row."""

    name = "ms_swift"
    title = "ms-swift messages with a rejected response"
    reads = frozenset(
        ("id", "messages", "rejected_response", "rejected_messages", "rejected_images", "images")
        + ("image", "query", "response", "history", "system", "label", "videos", "audios")
    )

    def matches(self, row: Mapping[str, Any]) -> bool:
        rejected = {"rejected_response", "rejected_messages", "rejected_images"} & set(row)
        return bool(rejected) and bool({"messages", "query"} & set(row))

    def item(self, row: Mapping[str, Any]) -> Item:
        for medium in ("videos", "audios"):
            if fields.pictures(row, medium):
                raise ValueError(f"it has {medium}; pictures and text are read")
        cells = fields.pictures(row, "images", "image")
        turns = _turns(row)
        if len(turns) < 2:
            raise ValueError("messages hold no question with its reply")
        turn, system = fields.one_question(turns[:-1], "messages, but for the last,")
        chosen = fields.one_reply(turns[-1:], "the last message")
        if turn.cells and cells:
            raise ValueError("pictures stand in the messages and in images, too")
        cells = turn.cells or cells
        if fields.pictures(row, "rejected_images") not in ((), cells):
            raise ValueError(
                "rejected_images are other pictures than images: pairs of pictures are no pairs "
                "of answers"
            )
        extra = fields.rest_of(row, self.reads)
        if system or row.get("system"):
            extra["system"] = system or row["system"]
        return Item(
            id=str(row.get("id") or ""),
            question=question_text(turn.text, len(cells)),
            images=cells,
            meta={"source_fields": extra} if extra else {},
            **_answers(chosen, row),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        question = marked(pair.item.question, len(pair.item.images), gap="")
        return {
            "id": pair.id,
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": pair.chosen_text},
            ],
            "rejected_response": pair.rejected_text,
            "images": list(pair.item.images),
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }

    def finish(self, folder: pathlib.Path, file: str, count: int) -> None:
        write_text(folder / "README.md", README.format(count=count, file=file))


def _turns(row: Mapping[str, Any]) -> list[fields.Turn]:
    if row.get("messages") is not None:
        return fields.turns(row["messages"], "messages")
    if row.get("history"):
        raise ValueError(f"it has earlier turns in history; {fields.NO_DIALOGUE}")
    texts = [fields.text(row, name) for name in ("query", "response")]
    return [fields.Turn(fields.USER, texts[0]), fields.Turn(fields.ASSISTANT, texts[1])]


def _answers(chosen: str, row: Mapping[str, Any]) -> dict[str, Any]:
    rejected = row.get("rejected_response")
    if rejected is None and row.get("rejected_messages") is not None:
        rejected = fields.turns(row["rejected_messages"], "rejected_messages")[-1:]
        rejected = fields.one_reply(rejected, "the last of rejected_messages")
    elif isinstance(rejected, list):
        rejected = fields.turns(rejected, "rejected_response")
        rejected = fields.one_reply(rejected, "rejected_response")
    if rejected is not None:
        return pair(chosen, fields.as_text(rejected, "rejected_response"))
    if row.get("rejected_images") is not None:
        raise ValueError("only pictures are rejected: that is no pair of answers")
    if row.get("label") is None:
        return {"reference": (chosen,)}
    good = fields.one_of(row["label"], "label", (True, False))
    return {"reference": (chosen,) if good else (), "answers": (Answer(0, (chosen,), good),)}
