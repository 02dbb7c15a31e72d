"""RPO's own files: alpaca rows whose two outputs begin with the same steps (arXiv 2410.10858).

Read from RPO 94c0fdd: `instruction`, `input`, `output` = [accepted, rejected], each with the prefix
in front. The prefix is found again as the lines that both have in common (two branches may begin
with the same signs, so not the characters). Rows of one question that follow each other are one
tree: the answer with the longest prefix is the reference path, and others that leave it are its
branches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Pair, facts, own_fields
from srpo_jax.data_pipelines.exchange.item import Item, pair


class Rpo(Format):
    """One branch point a row, several rows a question."""

    name = "rpo"
    title = "RPO's alpaca rows with two outputs"
    reads = frozenset(("id", "instruction", "input", "output"))
    container = "json"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return "instruction" in row and isinstance(row.get("output"), list)

    def item(self, row: Mapping[str, Any]) -> Item:
        texts = [fields.optional(row, name) for name in ("instruction", "input")]
        outputs = fields.items(row, "output")
        if len(outputs) != 2:
            raise ValueError(f"output has {len(outputs)} texts, not an accepted and a rejected one")
        chosen, rejected = (fields.as_text(text, "an output") for text in outputs)
        before = common_lines(chosen, rejected)
        start = sum(map(len, before))
        extra = fields.rest_of(row, self.reads)
        return Item(
            id=str(row.get("id", "")),
            question="\n".join(text for text in texts if text),
            meta={"source_fields": extra} if extra else {},
            **pair(chosen[start:], rejected[start:], before),
        )

    def group(self, row: Mapping[str, Any]) -> Hashable:
        return repr((row.get("instruction"), row.get("input")))

    def merge(self, items: Sequence[Item]) -> list[Item]:
        trees: list[Item] = []
        for item in sorted(items, key=lambda each: -len(each.reference)):  # stable
            steps = item.reference[:-1]
            for number, tree in enumerate(trees):
                if tree.reference[:-1][: len(steps)] == steps:
                    kept = [each for each in item.answers if each not in tree.answers]
                    trees[number] = dataclasses.replace(tree, answers=(*tree.answers, *kept))
                    break
            else:
                trees.append(item)
        return trees

    def row(self, pair: Pair) -> dict[str, Any]:
        if pair.item.images:
            raise ValueError("it has pictures; RPO's files are text alone")
        return {
            "id": pair.id,
            "instruction": pair.item.question,
            "input": "",
            "output": [pair.chosen_text, pair.rejected_text],
            **facts(pair.item),
            **own_fields(pair.item, self.name),
        }


def common_lines(one: str, other: str) -> list[str]:
    """The lines, with their ends, that both texts begin with; something is left of both."""
    found = []
    lines = [text.splitlines(keepends=True) for text in (one, other)]
    for a, b in zip(lines[0][:-1], lines[1][:-1]):
        if a != b:
            break
        found.append(a)
    merged: list[str] = []
    for line in found:  # white space belongs to the end of a piece
        if merged and (not line.strip() or not merged[-1].strip()):
            merged[-1] += line
        else:
            merged.append(line)
    return merged if merged and merged[-1].strip() else []
