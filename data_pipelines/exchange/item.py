"""What every foreign format is read into and written from: one question with its answers, as text.

An item is a tree before it has tokens: a question with pictures, a reference path, and answers that
leave that path somewhere, some of them labelled. Texts are kept letter by letter: a path is a tuple
of pieces (its steps, then its reply) that make the assistant's turn when joined, white space
included, so that what is trained on is what the file says.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srpo_jax.data_pipelines.records import CATEGORIES, IMAGE_MARKER, MAX_IMAGES

Cell = str | bytes | Mapping[str, Any]  # a picture as a file has it: see pictures.py
MAX_ANSWERS = 1000

_HEAD = re.compile(rf"(?:\s*{re.escape(IMAGE_MARKER)})+\s*")


@dataclass(frozen=True)
class Answer:
    """A turn of an assistant from a branch point on.

    at: how many steps of the item's reference path stand before it. pieces: its own steps, then the
    reply. safe: the label that the file gives, None for none. steps_safe: one label a piece, in
    files that label steps. ended: False for a text that the turn would go on behind.
    """

    at: int
    pieces: tuple[str, ...]
    safe: bool | None = None
    steps_safe: tuple[bool, ...] = ()
    ended: bool = True

    @property
    def text(self) -> str:
        """All that the assistant says from the branch point on."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Item:
    """One question. images: as the source has them, or names of files when they are kept.

    reference: pieces of the reference path; () for none. ended: see Answer.
    """

    id: str
    question: str
    images: tuple[Cell, ...] = ()
    reference: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    ended: bool = True
    category: str | None = None
    risky: bool | None = None
    unsafe_reply: str | None = None
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def prefix(self, at: int) -> str:
        """What the assistant has said before the branch point `at`."""
        return "".join(self.reference[:at])


def pair(chosen: str, rejected: str, prefix: Sequence[str] = (), *, ended: bool = True) -> dict:
    """The fields `reference`, `answers` and `ended` of an item of two answers behind a prefix."""
    at = len(prefix)
    return {
        "reference": (*prefix, chosen),
        "answers": (
            Answer(at, (chosen,), True, ended=ended),
            Answer(at, (rejected,), False, ended=ended),
        ),
        "ended": ended,
    }


def pairs_of(item: Item) -> Iterator[tuple[Answer, Answer]]:
    """Every (safe, unsafe) pair of answers that leave the reference path at the same point."""
    for at in sorted({answer.at for answer in item.answers}):
        here = [answer for answer in item.answers if answer.at == at]
        for chosen in here:
            for rejected in here:
                if chosen.safe is True and rejected.safe is False:
                    yield chosen, rejected


def question_text(text: str, images: int) -> str:
    """The question without the marks of pictures at its head, where pictures stand anyway.

    Marks between words stay. ValueError when there are neither none nor as many as pictures.
    """
    marks = text.count(IMAGE_MARKER)
    if marks not in (0, images):
        raise ValueError(f"the question has {marks} {IMAGE_MARKER} marks for {images} pictures")
    head = _HEAD.match(text)
    if head and head.group().count(IMAGE_MARKER) == marks:
        return text[head.end() :]
    if text.rstrip().endswith(IMAGE_MARKER) and marks == images == 1:
        return text.rstrip().removesuffix(IMAGE_MARKER).rstrip()
    return text


def normal(text: str) -> str:
    """The text for comparisons: compatible signs as one, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def check_item(item: Item) -> None:
    """ValueError, with a short reason, for an item that no tree or record can be made of."""
    if not item.question.strip():
        raise ValueError("the question is empty")
    if len(item.images) > MAX_IMAGES:
        raise ValueError(f"{len(item.images)} pictures, the limit is {MAX_IMAGES}")
    if len(item.answers) > MAX_ANSWERS:
        raise ValueError(f"{len(item.answers)} answers, the limit is {MAX_ANSWERS}")
    if item.category is not None and item.category not in CATEGORIES:
        raise ValueError(f"category {item.category!r} is not one of {', '.join(CATEGORIES)}")
    for i, text in enumerate(item.reference):
        if not text.strip():
            raise ValueError(f"piece {i} of the reference path is empty")
    steps = max(len(item.reference) - 1, 0)
    for answer in item.answers:
        if not answer.pieces or not all(piece.strip() for piece in answer.pieces):
            raise ValueError(f"{_name(answer)} is empty")
        if not 0 <= answer.at <= steps:
            raise ValueError(f"an answer leaves after step {answer.at} of {steps}")
        if answer.steps_safe and len(answer.steps_safe) != len(answer.pieces):
            raise ValueError(f"{len(answer.steps_safe)} labels for {len(answer.pieces)} steps")
    for chosen, rejected in pairs_of(item):
        if normal(chosen.text) == normal(rejected.text):
            raise ValueError("the chosen and the rejected answer say the same")
    for text in _texts(item):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a text holds half a surrogate pair") from None


def _name(answer: Answer) -> str:
    return {True: "the chosen answer", False: "the rejected answer", None: "an answer"}[answer.safe]


def _texts(item: Item) -> Iterator[str]:
    yield from (item.id, item.question, *item.reference, item.unsafe_reply or "")
    yield from (piece for answer in item.answers for piece in answer.pieces)
