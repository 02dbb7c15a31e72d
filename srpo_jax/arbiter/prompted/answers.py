"""Reading a judge's answer: the whole of it must be what was asked for, or it says nothing.

Nothing is guessed from prose. A change here changes what old replies mean: count PARSER up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.arbiter.prompted.rubric import Part, Rubric, step_keys
from srpo_jax.arbiter.prompted.score import p_unsafe
from srpo_jax.errors import one_line

PARSER = 1
MAX_CHARACTERS = 100_000
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What a judge said: a label for each part that has some, and one for each step. note: its free
    text. score: how unsafe it holds the reply, 0 to 1, by its grade or its log-probabilities.
    """

    labels: dict[str, str]  # by what they are about: reply, path, effective, or the part's key
    steps: tuple[str, ...]
    note: str
    score: float | None = None


@dataclass(frozen=True)
class Fault:
    """An answer that says nothing. final: it is an opinion, and not asked for again. at_once: it is
    worth another try now, while others wait for the next start.
    """

    why: str
    final: bool = False
    at_once: bool = False


def read_answer(
    reply: ChatReply, rubric: Rubric, steps: int, tags: Collection[str] = ()
) -> Answer | Fault:
    """What the reply to a request by `rubric`, about so many steps, says. tags: the identifiers of
    the prompt's markers, which no answer may repeat.
    """
    if fault := not_answered(reply):
        return fault
    text = reply.text or ""
    if any(tag in text for tag in tags):
        return Fault("the answer repeats a marker", at_once=True)
    try:
        data = json_object(text)
        _exact(data, [key for part in rubric.parts for key in _keys(part, steps)], "the answer")
        answer = _read(data, rubric, steps)
    except ValueError as error:
        return Fault(f"unreadable answer: {one_line(error, 160)}", at_once=True)
    part, graded, score = rubric.judges.get(rubric.main), rubric.graded, None
    if graded is not None and graded.grades is not None:
        score = graded.grades.score(answer.labels[str(graded.about)])
    elif part is not None and reply.logprobs is not None:
        score = p_unsafe(text, reply.logprobs, part, answer.labels[rubric.main])
    return Answer(answer.labels, answer.steps, answer.note, score)


def not_answered(reply: ChatReply) -> Fault | None:
    """Why a reply is no whole answer; None for one that is."""
    if reply.error is not None:
        return Fault(reply.error)
    if reply.refusal is not None:
        return Fault(f"the judge refused: {one_line(reply.refusal, 120)}", final=True)
    if reply.finish_reason == "content_filter":
        return Fault("a content filter of the judge's server stopped it", final=True)
    if reply.finish_reason == "length":
        return Fault("the answer was cut: raise judge.max_tokens")
    if reply.finish_reason not in (None, "stop"):
        return Fault(f"the answer ended with {one_line(reply.finish_reason, 40)}")
    return None


def json_object(text: str) -> dict[str, Any]:
    """The one JSON object that the text is, or a fence holds that the text is. ValueError."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters")
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is given twice")
        return found

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not one JSON object: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def _keys(part: Part, steps: int) -> list[str]:
    return step_keys(steps) if part.judges == "steps" else [part.key]


def _exact(data: Any, keys: list[str], what: str) -> None:
    if not isinstance(data, dict) or set(data) != set(keys):
        raise ValueError(f"{what} must have exactly the keys {', '.join(keys)}")


def _read(data: dict[str, Any], rubric: Rubric, steps: int) -> Answer:
    labels, notes, judged = {}, [], []
    for part in rubric.parts:
        if part.judges == "steps":
            for key in step_keys(steps):
                inner = ["evidence", "verdict"] if part.text else ["verdict"]
                _exact(data[key], inner, key)
                _text(data[key].get("evidence", ""), f"{key}.evidence")
                judged.append(_label(data[key]["verdict"], part, f"{key}.verdict"))
        elif part.about:
            labels[part.about] = _label(data[part.key], part, part.key)
        else:
            notes.append(_text(data[part.key], part.key))
    return Answer(labels, tuple(judged), one_line(" ".join(notes), 200))


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is no string")
    return value


def _label(value: Any, part: Part, key: str) -> str:
    names = [label.name for label in part.labels]
    if value not in names:
        raise ValueError(f"{key} is none of {', '.join(names)}")
    return value
