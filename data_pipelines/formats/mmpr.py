"""InternVL's MPO data (MMPR): JSON lines {image, question, chosen, rejected}, and meta.json.

Read from InternVL 2410d1d (internvl/train/internvl_chat_mpo.py). meta.json names data sets, each
with `root` (of the pictures), `annotation` (JSON lines), `data_augment`, `repeat_time` and
`length`: give that file and with --part which of its sets, or a file of lines alone. A question
without an <image> mark gets one in front there, and several pictures need as many marks.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Opened, Pair, facts, marked, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair, question_text
from srpo_jax.data_pipelines.exchange.rows import read_rows
from srpo_jax.data_pipelines.records import IMAGE_MARKER
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json


class Mmpr(Format):
    """Pairs with any number of pictures."""

    name = "mmpr"
    title = "InternVL MPO (MMPR) lines, with meta.json"
    reads = frozenset(("id", "image", "question", "chosen", "rejected", "video"))

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"question", "chosen", "rejected"} <= set(row) and isinstance(
            row.get("image", ""), (str, list)
        )

    @classmethod
    def knows_path(cls, path: pathlib.Path) -> bool:
        """A JSON object of objects that have an annotation."""
        if path.suffix != ".json" or not path.is_file() or path.stat().st_size > 1 << 20:
            return False
        text = path.read_text(encoding="utf-8", errors="replace")
        return text.lstrip().startswith("{") and '"annotation"' in text and '"root"' in text

    def open(self, path: pathlib.Path, part: str = "") -> Opened:
        if not self.knows_path(path):
            return super().open(path, part)
        meta = read_json(path)
        if part not in meta and (part or len(meta) != 1):
            said = f"has no {part!r}" if part else f"names {len(meta)} data sets"
            raise UserError(f"{path} {said}; give --part=NAME, one of {', '.join(list(meta)[:20])}")
        name = part or next(iter(meta))
        entry = meta[name]
        if not isinstance(entry, dict) or not isinstance(entry.get("annotation"), str):
            raise UserError(f"{path}: {name} has no annotation")
        file, root = (_beside(path, entry.get(key, "."), name) for key in ("annotation", "root"))
        if file.suffix != ".jsonl":
            raise UserError(f"{path}: {name}: annotation {file.name} must end with .jsonl")
        if not file.is_file():
            raise UserError(f"{path}: {name}: {file} does not exist")
        return Opened(read_rows(file), root, (file,))

    def item(self, row: Mapping[str, Any]) -> Item:
        if row.get("video"):
            raise ValueError("it has a video; pictures and text are read")
        cells = fields.pictures(row, "image")
        question = fields.text(row, "question")
        if len(cells) > 1 and question.count(IMAGE_MARKER) != len(cells):
            marks = question.count(IMAGE_MARKER)
            raise ValueError(f"the question has {marks} <image> marks for {len(cells)} pictures")
        extra = fields.rest_of(row, self.reads)
        return Item(
            id=str(row.get("id", "")),
            question=question_text(question, len(cells)),
            images=cells,
            meta={"source_fields": extra} if extra else {},
            **pair(fields.text(row, "chosen"), fields.text(row, "rejected")),
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        images = list(pair.item.images)
        shown: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
        return {
            "id": pair.id,
            **(shown if images else {}),
            "question": marked(pair.item.question, len(images)),
            "chosen": pair.chosen_text,
            "rejected": pair.rejected_text,
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }

    def finish(self, folder: pathlib.Path, file: str, count: int) -> None:
        entry = {
            "root": "./",
            "annotation": file,
            "data_augment": False,
            "repeat_time": 1,
            "length": count,
        }
        write_json(folder / "meta.json", {"srpo_pairs": entry})


def _beside(meta: pathlib.Path, name: Any, part: str) -> pathlib.Path:
    """A place that meta.json names, seen from its folder."""
    if not isinstance(name, str) or "://" in name:
        raise UserError(f"{meta}: {part}: {name!r} is no place on this machine")
    return meta.parent / name
