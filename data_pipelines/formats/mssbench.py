"""MSSBench: one question on a safe and on an unsafe picture (arXiv 2410.06172).

combined.json (or combine.json): an object with the lists `chat` (`safe_image_path`,
`unsafe_image_path`, `queries`) and `embodied` (`safe`, `unsafe`, with instructions to a robot).
Each query is asked of both pictures, so a risky question has its harmless twin. Pictures lie in the
folders chat and embodied beside it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Opened
from srpo_jax.data_pipelines.exchange.item import Item
from srpo_jax.data_pipelines.exchange.rows import Row
from srpo_jax.errors import UserError
from srpo_jax.files import read_json

PARTS = ("chat", "embodied")
NAMES = ("combined.json", "combine.json")
SIDES = {"safe": False, "unsafe": True}


class MssBench(Format):
    """Two pictures and some queries."""

    name = "mssbench"
    title = "MSSBench: the same question on a safe and on an unsafe picture"
    reads = frozenset(
        ("part", "safe_image_path", "unsafe_image_path", "queries", "safe", "unsafe")
        + ("safe_instruction", "safe_instructions", "unsafe_instruction", "unsafe_instructions")
    )
    writes = False

    @classmethod
    def knows_path(cls, path: pathlib.Path) -> bool:
        return path.is_file() and path.name in NAMES

    def open(self, path: pathlib.Path, part: str = "") -> Opened:
        if part and part not in PARTS:
            raise UserError(f"--part={part}: must be one of {', '.join(PARTS)}")
        data = read_json(path)
        parts = [each for each in PARTS if each in data and part in ("", each)]
        if not parts:
            raise UserError(f"{path}: has no list {part or ' or '.join(PARTS)}")
        return Opened(_rows(path, data, parts), path.parent, (path,))

    def item(self, row: Mapping[str, Any]) -> list[Item]:
        part = row.get("part")
        extra = fields.rest_of(row, self.reads)
        found = []
        for side, risky in SIDES.items():
            if part == "chat":
                name, asked = f"{side}_image_path", fields.items(row, "queries")
            else:
                name, asked = side, _instructions(row, side)
            image = fields.text(row, name)
            image = image if image.startswith(f"{part}/") else f"{part}/{image}"
            for query in asked:
                found.append(
                    Item(
                        id="",
                        question=fields.as_text(query, "a query"),
                        images=(image,),
                        risky=risky,
                        meta={"side": side, **({"source_fields": extra} if extra else {})},
                    )
                )
        if not found:
            raise ValueError("it asks nothing")
        return found


def _rows(path: pathlib.Path, data: Mapping[str, Any], parts: list[str]) -> Iterator[Row]:
    for part in parts:
        rows = data[part]
        if not isinstance(rows, list):
            yield Row(f"{path}: {part}", {}, "must be a list")
            continue
        for i, row in enumerate(rows):
            where = f"{path}: {part}[{i}]"
            if isinstance(row, dict):
                yield Row(where, {**row, "part": part})
            else:
                yield Row(where, {}, "must be an object")


def _instructions(row: Mapping[str, Any], side: str) -> list[Any]:
    """All variants of an instruction, each once."""
    found = [row.get(f"{side}_instruction"), *(row.get(f"{side}_instructions") or ())]
    return list(dict.fromkeys(each for each in found if each is not None))
