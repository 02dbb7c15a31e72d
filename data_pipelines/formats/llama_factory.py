"""LLaMA-Factory's data sets: sharegpt and alpaca, as pairs or as single replies.

Read from LLaMA-Factory 0.9.5 (parser and converter of its package `data`). `dataset_info.json`
names files and columns: give that file, or its folder, and with --part which of its sets. A data
file alone is read by the default columns. Where it names columns, all others count as not there.

What is written lists every column, has one question of a user and so an odd number of turns, and
as many <image> marks as pictures: LLaMA-Factory skips the first kind of mistake with a warning, and
stops at the second.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Opened, Pair, facts, marked, own_fields
from srpo_jax.data_pipelines.exchange.item import Answer, Item, pair, question_text
from srpo_jax.data_pipelines.exchange.rows import read_rows
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json

INFO = "dataset_info.json"
COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools") + (
    ("images", "videos", "audios", "chosen", "rejected", "kto_tag")
)
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one entry of dataset_info.json says: its kind, its columns and the words for roles."""

    formatting: str = "alpaca"
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    system_tag: str = "system"
    ranking: bool = False


class LlamaFactory(Format):
    """Either of its two layouts; sharegpt is what is written."""

    name = "llama_factory"
    title = "LLaMA-Factory sharegpt or alpaca, pairs or replies, with dataset_info.json"
    formatting = "sharegpt"  # of what is written, and the columns of its question
    question_columns: Mapping[str, str] = {"messages": "conversations"}

    def __init__(self) -> None:
        self._layout: Layout | None = None  # of dataset_info.json; else by the row

    def matches(self, row: Mapping[str, Any]) -> bool:
        pairs = {"chosen", "rejected"} <= set(row)
        return pairs and bool({"conversations", "instruction"} & set(row))

    @classmethod
    def knows_path(cls, path: pathlib.Path) -> bool:
        if path.is_dir():
            return (path / INFO).is_file() and not (path / "state.json").is_file()
        return path.name == INFO and not (path.parent / "state.json").is_file()

    def open(self, path: pathlib.Path, part: str = "") -> Opened:
        if not self.knows_path(path):
            return super().open(path, part)
        folder = path if path.is_dir() else path.parent
        info = read_json(folder / INFO)
        where = folder / INFO
        if part not in info and (part or len(info) != 1):
            said = f"has no {part!r}" if part else f"names {len(info)} data sets"
            names = ", ".join(list(info)[:20])
            raise UserError(f"{where} {said}; give --part=NAME, one of {names}")
        name = part or next(iter(info))
        entry = info[name]
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            elsewhere = [key for key in SOURCES if isinstance(entry, dict) and key in entry]
            why = f"lies elsewhere ({elsewhere[0]})" if elsewhere else "names no file"
            raise UserError(f"{where}: {name} {why}; get it, and give it a file_name")
        self._layout = _layout(entry, f"{where}: {name}")
        file = (folder / entry["file_name"]).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise UserError(f"{where}: {name}: {entry['file_name']!r} is outside {folder}")
        inner = super().open(file)
        rows = (row for each in inner.files for row in read_rows(each))
        return Opened(rows, folder, inner.files)

    def item(self, row: Mapping[str, Any]) -> Item:
        layout = self._layout or _of_row(row)
        for medium in ("videos", "audios"):
            if fields.pictures(row, getattr(layout, medium) or ""):
                raise ValueError(f"it has {medium}; pictures and text are read")
        talk = _sharegpt if layout.formatting in ("sharegpt", "openai") else _alpaca
        question, system, answers = talk(row, layout)
        cells = fields.pictures(row, layout.images or "")
        read = {getattr(layout, name) for name in COLUMNS} | {"id"}
        if self._layout is None:
            read |= {"image", "images"}
        extra = fields.rest_of(row, read)
        for name, value in (("system", system), ("tools", row.get(layout.tools or ""))):
            if value:
                extra[name] = value
        return Item(
            id=str(row.get("id") or ""),
            question=question_text(question, len(cells)),
            images=cells,
            meta={"source_fields": extra} if extra else {},
            **answers,
        )

    def row(self, pair: Pair) -> dict[str, Any]:
        return {
            "id": pair.id,
            **self.talk(pair),
            "images": list(pair.item.images),
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }

    def talk(self, pair: Pair) -> dict[str, Any]:
        """The columns of a row that question and answers stand in."""
        question = marked(pair.item.question, len(pair.item.images))
        return {
            "conversations": [{"from": "human", "value": question}],
            "chosen": {"from": "gpt", "value": pair.chosen_text},
            "rejected": {"from": "gpt", "value": pair.rejected_text},
        }

    def finish(self, folder: pathlib.Path, file: str, count: int) -> None:
        columns = {name: name for name in ("chosen", "rejected", "images")}
        entry = {
            "file_name": file,
            "formatting": self.formatting,
            "ranking": True,
            "columns": {**self.question_columns, **columns},
        }
        write_json(folder / INFO, {"srpo_pairs": entry})


class LlamaFactoryAlpaca(LlamaFactory):
    """The same, written as alpaca."""

    name = "llama_factory_alpaca"
    title = "LLaMA-Factory alpaca pairs, with dataset_info.json"
    formatting = "alpaca"
    question_columns = {"prompt": "instruction", "query": "input"}

    def matches(self, row: Mapping[str, Any]) -> bool:
        return False  # the other one reads both

    @classmethod
    def knows_path(cls, path: pathlib.Path) -> bool:
        return False

    def talk(self, pair: Pair) -> dict[str, Any]:
        return {
            "instruction": marked(pair.item.question, len(pair.item.images)),
            "input": "",
            "chosen": pair.chosen_text,
            "rejected": pair.rejected_text,
        }


def _layout(entry: Mapping[str, Any], where: str) -> Layout:
    """The layout that an entry names."""
    known = {field.name for field in dataclasses.fields(Layout)}
    made: dict[str, Any] = {"formatting": entry.get("formatting", "alpaca")}
    if made["formatting"] not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{where}: formatting {made['formatting']!r} is not alpaca or sharegpt")
    made["ranking"] = bool(entry.get("ranking"))
    if "columns" in entry:
        made |= {name: None for name in COLUMNS} | dict(entry["columns"])
    made |= entry.get("tags", {})
    made = {name: value for name, value in made.items() if name in known}
    if any(not isinstance(value, (str, bool, type(None))) for value in made.values()):
        raise UserError(f"{where}: columns and tags must be names")
    return Layout(**made)


def _of_row(row: Mapping[str, Any]) -> Layout:
    """The default layout for a row of a file alone."""
    pairs = {"chosen", "rejected"} <= set(row)
    named: dict[str, Any] = {"chosen": "chosen", "rejected": "rejected"} if pairs else {}
    images = next((name for name in ("images", "image") if row.get(name) is not None), None)
    if "conversations" in row or "messages" in row:
        named["formatting"] = "sharegpt"
        named["messages"] = "conversations" if "conversations" in row else "messages"
    return Layout(ranking=pairs, images=images, system="system", **named)


def _sharegpt(row: Mapping[str, Any], layout: Layout) -> tuple[str, str, dict[str, Any]]:
    """(question, system text, the answers' fields of the item)."""
    roles = {
        layout.user_tag: fields.USER,
        layout.assistant_tag: fields.ASSISTANT,
        layout.system_tag: fields.SYSTEM,
    }
    words = {"role": layout.role_tag, "content": layout.content_tag, "roles": roles}
    name = layout.messages or "conversations"
    if row.get(name) is None:
        raise ValueError(f"field {name!r} is missing")
    found = fields.turns(row[name], name, **words)
    if layout.ranking:
        turn, system = fields.one_question(found, name)
        texts = []
        for column in (layout.chosen or "chosen", layout.rejected or "rejected"):
            reply = fields.mapping(row.get(column), column)
            texts.append(fields.one_reply(fields.turns([reply], column, **words), column))
        return turn.text, system or _system(row, layout), pair(*texts)
    if len(found) < 2:
        raise ValueError(f"{name} holds no question with its reply")
    turn, system = fields.one_question(found[:-1], f"{name}, but for its last,")
    reply = fields.one_reply(found[-1:], f"the last of {name}")
    return turn.text, system or _system(row, layout), _single(reply, row, layout)


def _alpaca(row: Mapping[str, Any], layout: Layout) -> tuple[str, str, dict[str, Any]]:
    if row.get(layout.history or ""):
        raise ValueError(f"it has earlier turns in history; {fields.NO_DIALOGUE}")
    texts = [fields.optional(row, name) for name in (layout.prompt, layout.query) if name]
    question = "\n".join(text for text in texts if text)
    system = _system(row, layout)
    if layout.ranking:
        chosen = fields.text(row, layout.chosen or "chosen")
        return question, system, pair(chosen, fields.text(row, layout.rejected or "rejected"))
    reply = fields.text(row, layout.response or "output")
    return question, system, _single(reply, row, layout)


def _single(reply: str, row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """A reply alone; with its label where there is one (KTO)."""
    if not layout.kto_tag or row.get(layout.kto_tag) is None:
        return {"reference": (reply,)}
    good = fields.one_of(row[layout.kto_tag], layout.kto_tag, (True, False))
    answers = (Answer(0, (reply,), good),)
    return {"reference": (reply,) if good else (), "answers": answers}


def _system(row: Mapping[str, Any], layout: Layout) -> str:
    return fields.optional(row, layout.system) if layout.system else ""
