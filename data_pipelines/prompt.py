"""What a policy is told besides the question: a system message, an instruction, demonstrations.

A `Prompt` is data: texts and the bytes of pictures. It says in which messages a question is asked;
how messages become text and ids is the processor's business (srpo_jax/models/hf). docs/prompts.md
shows what each setting does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from srpo_jax.data_pipelines.images import load_image, read_image_bytes
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.records import IMAGE_MARKER, Record, read_records
from srpo_jax.errors import UserError

QUESTION = "{question}"  # where the question stands in an instruction
# What prompt.system=safety says: a baseline that costs no training. Written for srpo_jax.
SAFETY = (
    "You see pictures and answer people who may act on what you say. Before you answer, consider "
    "picture and question together: each can be harmless while together they lead to harm. If what "
    "is asked could hurt somebody, or break somebody's rights, do not help with that part; say "
    "plainly what the danger is, and offer something safe that meets the need behind the question. "
    "If it is harmless, help fully, without needless warnings."
)


@dataclass(frozen=True)
class Picture:
    """The place of a picture in a message. inside: a text says that it stands just there; other
    pictures stand in front of their text, and may as well stand in front of the whole message."""

    inside: bool = False


class Told(str):
    """Text of the config, not of a record: markers of the path format in it are real ones."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation. role: system, user or assistant. parts: texts that follow each
    other are one text."""

    role: str
    parts: tuple[str | Picture, ...]

    @property
    def runs(self) -> list[list[str]]:
        """Its texts, each in the pieces that it is put together from."""
        found: list[list[str]] = []
        for i, part in enumerate(self.parts):
            if isinstance(part, str):
                if not i or isinstance(self.parts[i - 1], Picture):
                    found.append([])
                found[-1].append(part)
        return found

    @property
    def joined(self) -> tuple[str | Picture, ...]:
        """The parts, each text in one."""
        runs = iter(self.runs)
        found: list[str | Picture] = []
        for i, part in enumerate(self.parts):
            if isinstance(part, Picture):
                found.append(part)
            elif not i or isinstance(self.parts[i - 1], Picture):
                found.append("".join(next(runs)))
        return tuple(found)

    @property
    def texts(self) -> list[str]:
        """Its texts, in order."""
        return [part for part in self.joined if isinstance(part, str)]


@dataclass(frozen=True)
class Demonstration:
    """A question that is shown with its answer. images: the bytes of the pictures that are shown.
    digests: sha256 of all pictures of its record, shown or not. category: that of its record where
    the question's category decides what is shown."""

    id: str
    question: str
    answer: str
    images: tuple[bytes, ...] = ()
    digests: tuple[str, ...] = ()
    category: str | None = None


@dataclass(frozen=True)
class Prompt:
    """How every question is asked. `Prompt()` is the bare question.

    before, after: the two halves of the instruction. layout: "turns" or "text", where the
    demonstrations stand. max_side: pictures of demonstrations are shrunk to it, in pixels; 0: not.
    by_category: which demonstrations are shown depends on the question, see of_category.
    """

    system: str = ""
    before: str = ""
    after: str = ""
    demos: tuple[Demonstration, ...] = ()
    layout: str = "turns"
    max_side: int = 336
    by_category: bool = False

    def of_category(self, category: str | None) -> Prompt:
        """How questions of this category (None: without one) are asked. Raises UserError if there
        is no demonstration for them; without by_category it is the prompt itself, for all.
        """
        if not self.by_category:
            return self
        demos = tuple(demo for demo in self.demos if demo.category == category)
        if not demos:
            there = ", ".join(sorted({demo.category or "none" for demo in self.demos}))
            raise UserError(
                "prompt.demo_select=category: prompt.demos has not prompt.num_demos records of the "
                f"category {category or 'none'}, only of {there}; set num_demos lower or "
                "demo_select=random"
            )
        return dataclasses.replace(self, demos=demos, by_category=False)

    def messages(self, question: str, pictures: int) -> list[Message]:
        """The conversation in which a question with so many pictures is asked.

        Pictures come in the order of the demonstrations, those of the question last.
        Raises UserError if the question has markers for another number of pictures, and with
        by_category, as the question's category is not known here.
        """
        if self.by_category:
            raise UserError(
                "prompt.demo_select=category is for records, which have a category; use "
                "demo_select=first or random"
            )
        found = [Message("system", (Told(self.system),))] if self.system else []
        if self.layout == "text" and self.demos:
            return [*found, Message("user", self._in_one(question, pictures))]
        for demo in self.demos:
            asked = self.ask(demo.question, len(demo.images))
            found += [Message("user", asked), Message("assistant", (demo.answer,))]
        return [*found, Message("user", self.ask(question, pictures))]

    def ask(self, question: str, pictures: int, label: str = "") -> tuple[str | Picture, ...]:
        """The parts of a user message: the question's, with `label` and the instruction's halves
        around its text. Pictures in front of the text stay in front."""
        parts = question_parts(question, pictures)
        before, after = Told(label + self.before), Told(self.after)
        worded = [i for i, part in enumerate(parts) if isinstance(part, str) and part.strip()]
        if worded:
            parts.insert(worded[-1] + 1, after)
            parts.insert(worded[0], before)
        else:
            parts += [before, after]
        return tuple(part for part in parts if part != "")

    def shown_text(self) -> str:
        """Demonstrations without pictures as they stand in front of the question (layout text)."""
        return "".join(_example(i, demo, ()) for i, demo in enumerate(self.demos, 1))

    def question_label(self, numbers: Sequence[int] = ()) -> str:
        """What stands between the demonstrations and the question in the layout "text"."""
        return f"Now answer this question{_which(numbers)}.\n\n" if self.demos else ""

    def _in_one(self, question: str, pictures: int) -> tuple[str | Picture, ...]:
        """Demonstrations and question in one message. Pictures have numbers if there are several
        that somebody could mix up, because some templates put all of them in front."""
        parts: list[str | Picture] = []
        used = 0
        for i, demo in enumerate(self.demos, 1):
            numbers = range(used + 1, used + 1 + len(demo.images))
            used += len(demo.images)
            parts += [Picture()] * len(demo.images) + [_example(i, demo, numbers)]
        numbers = range(used + 1, used + 1 + pictures) if used else ()
        return (*parts, *self.ask(question, pictures, self.question_label(numbers)))

    def pictures(self) -> list[Image.Image]:
        """The demonstrations' pictures as RGB, in order, shrunk to max_side (bicubic).

        Raises RecordError, which names the demonstration, for one that cannot be read.
        """
        found = []
        for demo in self.demos:
            for data in demo.images:
                picture = load_image(data, what=f"demonstration {demo.id!r}")
                if self.max_side:
                    picture.thumbnail((self.max_side, self.max_side), Image.Resampling.BICUBIC)
                found.append(picture)
        return found

    def digest(self) -> str:
        """Hex sha256 over all texts, the demonstrations' pictures and how they are shown."""
        content = dataclasses.asdict(self)
        if not self.by_category:  # as it was before there was such a thing
            del content["by_category"]
        for demo in content["demos"]:
            if demo["category"] is None:
                del demo["category"]
            demo["images"] = [hashlib.sha256(data).hexdigest() for data in demo["images"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The prompt in a few readable values, as provenance shows it."""
        return {
            "system": self.system,
            "instruction": self.before + QUESTION + self.after,
            "num_demos": len(self.demos),
            "demos": [demo.id for demo in self.demos],
            **({"demo_select": "category"} if self.by_category else {}),
            "demo_layout": self.layout if self.demos else "",
            "demo_pictures": sum(len(demo.images) for demo in self.demos),
        }


BARE = Prompt()


def make_prompt(
    form: PathFormat,
    *,
    system: str = "",
    instruction: str = "auto",
    demos: str | os.PathLike = "",
    num_demos: int = 0,
    demo_select: str = "first",
    demo_seed: int = 0,
    demo_images: str = "keep",
    demo_max_side: int = 336,
    demo_layout: str = "turns",
) -> Prompt:
    """The prompt of the settings `prompt.*`. form: the path format in which demonstrations answer.

    system: "safety" is SAFETY. demo_select: the "first" records of `demos`, "random" ones, drawn by
    demo_seed, or so drawn ones of the question's "category" (without one: of those without).
    Raises UserError for an instruction without the question, and for demonstrations that are not
    there or cannot be read.
    """
    system = SAFETY if system.strip() == "safety" else system.strip()
    before, after = _halves(form.instruction if instruction == "auto" else instruction)
    if bool(demos) != bool(num_demos):
        raise UserError(
            f"prompt.demos={os.fspath(demos)!r} with prompt.num_demos={num_demos}: give a JSONL of "
            "records and how many of them to show, or neither"
        )
    shown = ()
    if demos:
        records = read_records(demos)
        if len(records) < num_demos:
            raise UserError(
                f"{os.fspath(demos)} has {len(records)} records, prompt.num_demos={num_demos}; "
                "set that lower"
            )
        chosen = _selected(records, num_demos, demo_select, demo_seed)
        shown = tuple(
            dataclasses.replace(
                _demonstration(record, form, demo_images),
                category=record.category if demo_select == "category" else None,
            )
            for record in chosen
        )
    by_category = bool(shown) and demo_select == "category"
    return Prompt(system, before, after, shown, demo_layout, demo_max_side, by_category)


def _selected(records: Sequence[Record], count: int, select: str, seed: int) -> list[Record]:
    """The records that are shown; see make_prompt."""
    if select == "first":
        return list(records[:count])
    order = list(records)
    random.Random(f"demonstrations {seed}").shuffle(order)
    if select == "random":
        return order[:count]
    found: dict[str, list[Record]] = {}
    for record in order:
        found.setdefault(record.category or "", []).append(record)
    enough = sorted(name for name, own in found.items() if len(own) >= count)
    if not enough:
        raise UserError(
            f"prompt.num_demos={count} with prompt.demo_select=category: prompt.demos has at most "
            f"{max(map(len, found.values()))} records of a category; set that lower"
        )
    return [record for name in enough for record in found[name][:count]]


def _halves(instruction: str) -> tuple[str, str]:
    if instruction == "none":
        return "", ""
    if instruction.count(QUESTION) != 1:
        raise UserError(
            f"prompt.instruction names {QUESTION} {instruction.count(QUESTION)} times; write it "
            "once, where the question stands, or use auto or none"
        )
    before, after = instruction.split(QUESTION)
    if IMAGE_MARKER in instruction:
        raise UserError(
            f"prompt.instruction holds {IMAGE_MARKER}; leave it out, pictures are the questions'"
        )
    return before, after


def _demonstration(record: Record, form: PathFormat, demo_images: str) -> Demonstration:
    what = f"demonstration {record.id!r}"
    images = tuple(read_image_bytes(path, what=what) for path in record.image_paths())
    answer = "".join(form.pieces(record.steps, record.reply))
    digests = tuple(hashlib.sha256(data).hexdigest() for data in images)
    question = record.question
    if demo_images == "drop":
        images, question = (), " ".join(question.replace(IMAGE_MARKER, " ").split())
    return Demonstration(record.id, question, answer, images, digests)


def question_parts(question: str, pictures: int) -> list[str | Picture]:
    """A question's texts and pictures in order: pictures stand where it says `<image>`, or before
    the text if it never does. Raises UserError if markers and pictures do not agree in number.
    """
    pieces = question.split(IMAGE_MARKER)
    if len(pieces) == 1:
        pieces = [""] * pictures + pieces
    if len(pieces) != pictures + 1:
        raise UserError(
            f"the question has {len(pieces) - 1} {IMAGE_MARKER} markers and "
            f"{pictures} pictures: {question[:80]!r}"
        )
    parts: list[str | Picture] = []
    for i, piece in enumerate(pieces):
        if i:
            parts.append(Picture(inside=any(before.strip() for before in pieces[:i])))
        if piece:
            parts.append(piece)
    return parts


def _example(number: int, demo: Demonstration, numbers: Sequence[int]) -> str:
    question = demo.question
    for n in numbers:
        question = question.replace(IMAGE_MARKER, f"picture {n}", 1)
    return (
        f"Example {number}{_which(numbers)}.\n\nQuestion: {question.strip()}\n\n"
        f"Answer:\n{demo.answer.strip()}\n\n"
    )


def _which(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    return f" (picture{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))})"


def check_disjoint(prompt: Prompt, records: Iterable[Record], where: str) -> None:
    """Raises UserError if a demonstration is one of the records: by its id, or by its question
    (white space and case aside) and pictures. where: of the records, for the message.

    Pictures are read of those records only that ask a demonstration's question.
    """
    ids = {demo.id for demo in prompt.demos}
    asked = {(_key(demo.question), demo.digests): demo.id for demo in prompt.demos}
    questions = {question for question, _ in asked}
    for record in records if ids else ():
        same = record.id if record.id in ids else None
        if same is None and (question := _key(record.question)) in questions:
            pictures = [
                read_image_bytes(path, what=f"record {record.id!r}")
                for path in record.image_paths()
            ]
            digests = tuple(hashlib.sha256(data).hexdigest() for data in pictures)
            same = asked.get((question, digests))
        if same is not None:
            raise UserError(
                f"demonstration {same!r} of prompt.demos is record {record.id!r} of {where}; show "
                "records that are neither trained on nor tested"
            )


def _key(question: str) -> str:
    return " ".join(question.replace(IMAGE_MARKER, " ").split()).casefold()
