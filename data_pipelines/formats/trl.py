"""TRL's preference data, with pictures or without: `prompt`, `chosen`, `rejected`, `images`.

Read from TRL 1.16 (trl/data_utils.py, trl/trainer/dpo_trainer.py). A prompt is a text or a list of
messages; pictures are in `images`, a list, or in `image`, one. Both DPOTrainer's vision collator
and a text data set are read.

What is written avoids what TRL trips over. It looks at the first row alone to see what kind of set
it has, so all rows have the same fields, with pictures in `images` always. Its trainer does not
mask a prefix that both answers share: it stands in both, and `prefix_pieces` says how many
characters each step of it has, which TRL does not read. `max_length` is 1024 if not said
otherwise, which cuts replies off behind a large picture: README.md of what is written says so.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair, question_text
from srpo_jax.data_pipelines.records import IMAGE_MARKER
from srpo_jax.files import write_text

README = """# Preference pairs for TRL

{count} pairs, written by srpo_jax. To train on them:

```python
from datasets import {imports}
from trl import DPOConfig

data = load_dataset("{kind}", data_files="{file}", split="train")
{cast}config = DPOConfig(max_length=None, ...)
```

* `max_length=None` matters: TRL's default of 1024 tokens cuts from the right, and a large picture
  alone can take more, so that nothing would be left of the replies.
* Where a pair leaves a reasoning path, what stands before is in `chosen` and in `rejected`:
  TRL trains on it, too. `prefix_pieces` has its lengths in characters.
"""
CAST = 'data = data.cast_column("images", List(Image()))  # names begin in the working directory\n'


class Trl(Format):
    """Preference pairs, one a row."""

    name = "trl"
    title = "TRL preference pairs, with images or text alone (DPOTrainer)"
    reads = frozenset(("id", "prompt", "chosen", "rejected", "images", "image", "prefix_pieces"))
    container = "parquet"

    def matches(self, row: Mapping[str, Any]) -> bool:
        if not {"chosen", "rejected"} <= set(row) or "initial_reason_steps" in row:
            return False
        return "prompt" in row or (
            isinstance(row["chosen"], list) and not {"conversations", "messages"} & set(row)
        )

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = fields.pictures(row, "images", "image")
        chosen, rejected = row.get("chosen"), row.get("rejected")
        if row.get("prompt") is None and isinstance(chosen, list) and isinstance(rejected, list):
            prompt = _common(chosen, rejected)  # TRL: an implicit prompt
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        else:
            prompt = row.get("prompt")
        question, cells, system = _question(prompt, cells)
        texts = [_reply(chosen, "chosen"), _reply(rejected, "rejected")]
        prefix = _prefix(row.get("prefix_pieces"), texts)
        behind = [text[sum(map(len, prefix)) :] for text in texts]
        extra = fields.rest_of(row, self.reads)
        if system:
            extra["system"] = system
        return Item(
            id=str(row.get("id") or ""),
            question=question_text(question, len(cells)),
            images=cells,
            meta={"source_fields": extra} if extra else {},
            **pair(behind[0], behind[1], prefix),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        return {
            "id": pair.id,
            "images": list(pair.item.images),
            "prompt": [{"role": "user", "content": parts(pair.item)}],
            "chosen": [{"role": "assistant", "content": pair.chosen_text}],
            "rejected": [{"role": "assistant", "content": pair.rejected_text}],
            # A text, as an empty list has no type in a table.
            "prefix_pieces": " ".join(str(len(piece)) for piece in pair.prefix),
            **{"category": "", "source": "", "license": ""},
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }

    def finish(self, folder: pathlib.Path, file: str, count: int) -> None:
        as_json = not file.endswith(".parquet")
        text = README.format(
            count=count,
            file=file,
            kind="json" if as_json else "parquet",
            imports="Image, List, load_dataset" if as_json else "load_dataset",
            cast=CAST if as_json else "",
        )
        write_text(folder / "README.md", text)


def parts(item: Item) -> list[dict[str, Any]]:
    """The content of a user's message: every picture at its place, and the text around them."""
    texts = item.question.split(IMAGE_MARKER)
    if len(texts) == 1:
        texts = [*[""] * len(item.images), item.question]
    found: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        found += [{"type": "image", "text": None}] if number else []
        found += [{"type": "text", "text": text}] if text else []
    return found


def _question(prompt: Any, cells: tuple) -> tuple[str, tuple, str]:
    """(question with marks where pictures stand, pictures, system text) of a prompt."""
    if isinstance(prompt, str):
        return fields.as_text(prompt, "prompt"), cells, ""
    if prompt is None:
        raise ValueError("field 'prompt' is missing")
    turn, system = fields.one_question(fields.turns(prompt, "prompt"), "prompt")
    if turn.cells and cells:
        raise ValueError("pictures stand in the prompt and in images, too")
    return turn.text, turn.cells or cells, system


def _reply(value: Any, name: str) -> str:
    if isinstance(value, str):
        return fields.as_text(value, name)
    if value is None:
        raise ValueError(f"field {name!r} is missing")
    return fields.one_reply(fields.turns(value, name), name)


def _common(one: list, other: list) -> list:
    """The messages with which both lists begin."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return one[:count]


def _prefix(lengths: Any, texts: list[str]) -> tuple[str, ...]:
    """The pieces with which both texts begin, by their lengths in characters."""
    if not lengths:
        return ()
    words = fields.as_text(lengths, "prefix_pieces").split()
    if not all(word.isdecimal() and len(word) < 8 and int(word) for word in words):
        raise ValueError(f"prefix_pieces is {lengths[:40]!r}, not numbers of characters")
    counts = [int(word) for word in words]
    ends = list(accumulate(counts))
    if len(texts[0]) <= ends[-1] or texts[0][: ends[-1]] != texts[1][: ends[-1]]:
        raise ValueError("chosen and rejected do not begin alike, as prefix_pieces says")
    return tuple(texts[0][end - n : end] for n, end in zip(counts, ends))
