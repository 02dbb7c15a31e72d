"""TRL's stepwise supervision: `prompt`, `completions` (steps), `labels` (whether each is right).

Read from TRL 1.13 (experimental/prm/prm_trainer.py; later ones have no such trainer). It puts a
newline between steps, takes a label for an integer, and a prompt for a text: no pictures. Rows that
follow each other and ask the same are one question: the first of them without a wrong step is the
reference path, and the others leave it where they say something else.

Labels are those that a judge or a person gave each step, or, as `trl_step_values`, come of the tree
itself: a prefix is worth what comes of it, the share of safe ones among its branches (Wang et al.
2024, "Math-Shepherd", arXiv 2312.08935, who call a step right if any of its branches is).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, own_fields
from srpo_jax.data_pipelines.exchange.item import Answer, Item, question_text
from srpo_jax.data_pipelines.formats.trl import parts

BETWEEN = "\n"  # trl's step_separator


class TrlStepwise(Format):
    """Labelled steps, one path a row."""

    name = "trl_stepwise"
    title = "TRL stepwise supervision (PRMTrainer)"
    reads = frozenset(("id", "prompt", "completions", "labels", "images", "image"))

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"completions", "labels"} <= set(row)

    def item(self, row: Mapping[str, Any]) -> Item:
        cells = fields.pictures(row, "images", "image")
        prompt = row.get("prompt")
        if isinstance(prompt, list):
            turn, _ = fields.one_question(fields.turns(prompt, "prompt"), "prompt")
            prompt, cells = turn.text, turn.cells or cells
        question = fields.as_text(prompt, "prompt")
        steps = [fields.as_text(s, "a completion") for s in fields.items(row, "completions")]
        labels = [fields.one_of(x, "a label", (True, False)) for x in fields.items(row, "labels")]
        if not steps or len(steps) != len(labels):
            raise ValueError(f"{len(labels)} labels for {len(steps)} completions")
        pieces = tuple(
            step if last else step + BETWEEN
            for step, last in zip(steps, [False] * (len(steps) - 1) + [True])
        )
        extra = fields.rest_of(row, self.reads)
        answer = Answer(0, pieces, labels[-1], tuple(labels))
        return Item(
            id=str(row.get("id") or ""),
            question=question_text(question, len(cells)),
            images=cells,
            reference=pieces if all(labels) else (),
            answers=(answer,),
            meta={"source_fields": extra} if extra else {},
        )

    def group(self, row: Mapping[str, Any]) -> Hashable:
        return repr((row.get("prompt"), row.get("images", row.get("image"))))

    def merge(self, items: Sequence[Item]) -> list[Item]:
        first = next((item for item in items if item.reference), None)
        if first is None:
            return list(items)
        path = first.reference
        found = [_from_reference(item.answers[0], path) for item in items if item is not first]
        # What a wrong answer is compared with: the reference path from the same point on.
        points = sorted({answer.at for answer in found if answer.safe is False}) or [0]
        kept = [Answer(at, path[at:], True, (True,) * len(path[at:])) for at in points]
        return [dataclasses.replace(first, answers=(*kept, *found))]

    def rows(self, item: Item) -> Iterator[dict[str, Any]]:
        seen = set()
        for answer in item.answers:
            whole = (*item.reference[: answer.at], *answer.pieces)
            labels = answer.steps_safe
            if not labels and answer.safe is not None and len(answer.pieces) == 1:
                labels = (answer.safe,)
            if labels and whole not in seen:
                yield {
                    "id": f"{item.id}#{len(seen)}" if len(item.answers) > 1 else item.id,
                    **_asked(item),
                    "completions": [piece.strip() for piece in whole],
                    "labels": [*[True] * answer.at, *labels],
                    **own_fields(item, self.name),
                }
                seen.add(whole)


class TrlStepValues(TrlStepwise):
    """The reference path with a label a step: whether the safe share of the branches behind it is
    `threshold` or more. `values` has these shares, `branches` how many were judged. A path ends
    before the first step that no judged branch stands behind, as the last one always does.
    """

    name = "trl_step_values"
    title = "the same, steps labelled by what comes of their branches"
    threshold = 0.5

    def matches(self, row: Mapping[str, Any]) -> bool:
        return False  # the other one reads both

    def rows(self, item: Item) -> Iterator[dict[str, Any]]:
        behind: dict[int, list[bool]] = {}
        for answer in item.answers:
            if answer.safe is not None and answer.ended:
                behind.setdefault(answer.at, []).append(answer.safe)
        steps = range(1, len(item.reference))
        found = [behind[at] for at in itertools.takewhile(behind.__contains__, steps)]
        values = [sum(judged) / len(judged) for judged in found]
        if values:
            yield {
                "id": item.id,
                **_asked(item),
                "completions": [piece.strip() for piece in item.reference[: len(values)]],
                "labels": [value >= self.threshold for value in values],
                "values": values,
                "branches": [len(judged) for judged in found],
                **own_fields(item, self.name),
            }


def _asked(item: Item) -> dict[str, Any]:
    """A question as a text, or, with pictures, as a message."""
    if not item.images:
        return {"prompt": item.question}
    return {
        "prompt": [{"role": "user", "content": parts(item)}],
        "images": list(item.images),
    }


def _from_reference(answer: Answer, reference: Sequence[str]) -> Answer:
    """The answer as it leaves the reference path: behind the right steps that are the path's.

    (Its last piece, and the path's, always stay: an answer is never empty.)
    """
    most = min(len(answer.pieces), len(reference)) - 1
    at = 0
    while at < most and answer.pieces[at] == reference[at] and answer.steps_safe[at]:
        at += 1
    return dataclasses.replace(
        answer, at=at, pieces=answer.pieces[at:], steps_safe=answer.steps_safe[at:]
    )
