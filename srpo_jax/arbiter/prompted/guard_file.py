"""Guard models as data: how a model that was trained to judge is asked, and how it is read.

srpo_jax/arbiter/guards has those that are known. A guard has its own layout of words, which it was
trained on, so that nothing can be fenced or added: what it reads of a path is judged as it stands.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srpo_jax.arbiter.chat.messages import ChatReply, Message, Picture
from srpo_jax.arbiter.prompted.answers import Answer, Fault, not_answered
from srpo_jax.arbiter.prompted.rubric import Label, Part, Rubric
from srpo_jax.arbiter.prompted.rubric_file import UNSURE, read_yaml
from srpo_jax.arbiter.verdict import Case, Verdict
from srpo_jax.errors import UserError, one_line

FOLDER = pathlib.Path(__file__).parents[1] / "guards"
SHOWS = ("images", "question", "steps", "reply")
SYSTEM = ("file", "none")
_LEVELS = {"SAFE": Verdict.SAFE, "UNSAFE": Verdict.UNSAFE, UNSURE: None}
_PLACE = re.compile(r"\{(images|question|steps|reply)\}")
_REQUIRED = {"name", "models", "base", "license", "shows"}
_TEMPLATE = {"system", "user", "max_tokens", "answer"}
_KNOWN = _REQUIRED | _TEMPLATE | {"unknown", "unsure"}


@dataclass(frozen=True)
class Guard(Rubric):
    """A guard as read. As a rubric it has one part for each of what it judges, with the same
    labels: its levels. user: the message, with {images}, {question}, {steps} and {reply} in it.
    behind: what stands before the level in its answer. unknown: what could not be found out.
    """

    models: tuple[str, ...] = ()
    system: str = "none"
    user: str = ""
    max_tokens: int = 0
    behind: str = ""
    pattern: str = ""
    unknown: tuple[str, ...] = ()

    def messages(self, case: Case, pictures: Sequence[Picture], told: str) -> tuple[Message, ...]:
        """What the guard is asked about a case; told: its system prompt, "" for none."""
        texts = {
            "question": case.record.question,
            "steps": "\n".join(case.steps),
            "reply": case.reply or "",
        }
        parts: list[str | Picture] = []
        for number, piece in enumerate(_PLACE.split(self.user)):  # a place, a text, and so on
            if number % 2 and piece == "images":
                parts += pictures
            elif written := texts[piece] if number % 2 else piece:
                joins = parts and isinstance(parts[-1], str)
                parts = [*parts[:-1], f"{parts[-1]}{written}"] if joins else [*parts, written]
        system = (Message("system", (told,)),) if told else ()
        return *system, Message("user", tuple(parts))

    def read(self, reply: ChatReply) -> Answer | Fault:
        """The level that an answer ends in, for everything that the guard judges. Two different
        ones, or none, say nothing.
        """
        if fault := not_answered(reply):
            return fault
        text = reply.text or ""
        before, found, after = text.rpartition(self.behind) if self.behind else ("", " ", text)
        if not found:
            return Fault(f"unreadable answer: it has no {self.behind}", at_once=True)
        levels = {level.lower() for level in re.findall(self.pattern, after)}
        if len(levels) != 1:
            said = "no level" if not levels else f"levels {', '.join(sorted(levels))}"
            return Fault(f"unreadable answer: {said}", at_once=True)
        (level,) = levels
        if level not in [label.name for label in self.parts[0].labels]:
            return Fault(f"unreadable answer: level {one_line(level, 40)}", at_once=True)
        labels = {part.judges: level for part in self.parts if part.judges}
        return Answer(labels, (), one_line(before or text, 200))


def load_guard(name: str) -> Guard:
    """A guard, by its name or by the path of its file. Errors: UserError for a wrong file, and for
    a guard that cannot be an arbiter, with the reason.
    """
    data, where, sha256 = read_yaml(name, FOLDER, "guards")

    def fail(key: str, why: str) -> UserError:
        return UserError(f"{where}: {key} {why}")

    if not isinstance(data, dict) or not _REQUIRED <= set(data):
        raise fail("a guard", f"has at least {', '.join(sorted(_REQUIRED))}")
    if unknown := sorted(set(map(str, data)) - _KNOWN):
        raise fail(unknown[0], f"is unknown; known are {', '.join(sorted(_KNOWN))}")
    shows = data["shows"]
    if not isinstance(shows, list) or not shows or [s for s in shows if s not in SHOWS]:
        raise fail("shows", f"must be a list of some of {', '.join(SHOWS)}")
    for key in ("name", "base", "license"):
        if not isinstance(data[key], str) or not data[key].strip():
            raise fail(key, "must be text")
    _refuse_half_blind(data["name"], shows)
    if missing := sorted(_TEMPLATE - set(data)):
        raise fail(missing[0], "is missing: the guard cannot be asked without it")
    return Guard(
        name=data["name"],
        role="",
        shows=tuple(shows),
        parts=_parts(data["answer"], fail),
        votes=1,
        unsure=_one_of(data.get("unsure", "drop"), ("drop", "unsafe"), "unsure", fail),
        sha256=sha256,
        where=where,
        models=_texts(data["models"], "models", fail),
        system=_one_of(data["system"], SYSTEM, "system", fail),
        user=_user(data["user"], shows, fail),
        max_tokens=_count(data["max_tokens"], fail),
        behind=data["answer"].get("behind", ""),
        pattern=_pattern(data["answer"].get("pattern"), fail),
        unknown=_texts(data.get("unknown", []), "unknown", fail),
    )


def _refuse_half_blind(name: str, shows: Sequence[str]) -> None:
    lacks = [field for field in ("images", "question", "reply") if field not in shows]
    if not lacks:
        return
    sees = "pictures alone" if shows == ["images"] else f"{', '.join(shows)} but no {lacks[0]}"
    raise UserError(
        f"judge.rubric={name!r}: this guard sees {sees}; harm that picture and text ask for only "
        "together is invisible to it, so it cannot be an arbiter: docs/judges.md names two that can"
    )


def _parts(answer: Any, fail: Any) -> tuple[Part, ...]:
    known = {"behind", "pattern", "judges", "levels"}
    if not isinstance(answer, dict) or not {"pattern", "judges", "levels"} <= set(answer) <= known:
        raise fail("answer", "must have pattern, judges and levels, and may have behind")
    judges, levels = answer["judges"], answer["levels"]
    if not isinstance(answer.get("behind", ""), str):
        raise fail("answer.behind", "must be text")
    if judges not in (["reply"], ["reply", "path"]):
        raise fail("answer.judges", "must be [reply] or [reply, path]")
    if not isinstance(levels, dict) or not all(
        isinstance(name, str) and name == name.lower() and means in list(_LEVELS)
        for name, means in levels.items()
    ):
        raise fail(
            "answer.levels", "must map lower-case texts (quote numbers) to SAFE, UNSAFE, unsure"
        )
    if not {"SAFE", "UNSAFE"} <= set(levels.values()):
        raise fail("answer.levels", "must have one that is SAFE and one that is UNSAFE")
    labels = tuple(Label(name, _LEVELS[means], "") for name, means in levels.items())
    return tuple(Part(f"{subject}_level", subject, "", labels) for subject in judges)


def _pattern(value: Any, fail: Any) -> str:
    try:
        if re.compile(value).groups == 1:
            return value
    except (re.error, TypeError):
        pass
    raise fail("answer.pattern", "must be a regular expression with one group, the level")


def _user(value: Any, shows: Sequence[str], fail: Any) -> str:
    if not isinstance(value, str) or sorted(_PLACE.findall(value)) != sorted(shows):
        raise fail("user", "must be text with each of what it shows in it once, as {reply}")
    return value.removesuffix("\n")


def _one_of(value: Any, words: Sequence[str], key: str, fail: Any) -> str:
    if value not in words:
        raise fail(key, f"must be {' or '.join(words)}")
    return value


def _count(value: Any, fail: Any) -> int:
    if type(value) is not int or value < 1:
        raise fail("max_tokens", "must be a number from 1")
    return value


def _texts(value: Any, key: str, fail: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise fail(key, "must be a list of texts")
    return tuple(value)
