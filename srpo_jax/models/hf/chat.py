"""Messages -> the text that a checkpoint's chat template makes of them, checked.

A template is a program from a stranger. Some drop a system message, take the thinking out of
earlier answers, print a Python list, or write a text where no space parts it from the next word:
nothing fails then, and the policy is asked something else. So every conversation is rendered twice,
once as it is and once with a mark on both sides of every text, which shows where the texts went.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from srpo_jax.data_pipelines.prompt import Message, Picture
from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.hf_folder import read_optional_json

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
# What a printed list of parts has in it: {'type': or {"type":
PRINTED = re.compile(r"\{\s*[\"']type[\"']\s*:")


class Chat:
    """The chat template of a checkpoint: `render` makes one text of messages.

    tokenizer: transformers' own, whose template engine is used. source: the template's text.
    placeholder: what the template writes for a picture.
    """

    def __init__(self, tokenizer: Any, source: str, placeholder: str):
        self._tokenizer, self.source, self.placeholder = tokenizer, source, placeholder

    def render(
        self, messages: Sequence[Message], cut: Callable[[Sequence[str], str, str], str]
    ) -> tuple[str, str]:
        """(text up to where the answer begins, mark): the mark is a character of no text.

        cut: (pieces of a text, role, mark) -> the text with `mark` inside every control token it
        spells out, so that every whole placeholder in the result is the template's.
        Raises UserError if the template fails, or if it does not write every text once, whole, in
        order and apart from its own words, and one placeholder a picture in the picture's place
        (or all pictures of a message in front of it, if none has its place inside a text).
        """
        texts = "".join(text for message in messages for text in message.texts)
        mark, begin, end = unused_characters(self.source + texts, 3)
        cut_texts = [[cut(run, m.role, mark) for run in m.runs] for m in messages]
        plain = self.apply(_contents(messages, cut_texts))
        framed = [[begin + text + end for text in own] for own in cut_texts]
        shown = self.apply(_contents(messages, framed))
        outside, inside = _apart(shown, begin, end)
        if any(PRINTED.search(text) for text in outside):
            raise UserError(
                "the chat template prints the list of a message's parts, as it is made for texts "
                "alone; put one for texts and pictures into chat_template.jinja"
            )
        self._check_pictures(messages, plain, outside)
        _check_texts(messages, [t for own in cut_texts for t in own], outside, inside)
        self._check_places(messages, outside)
        if _squeezed(plain) != _squeezed(shown.replace(begin, "").replace(end, "")):
            raise UserError(
                "the chat template changes a text of the prompt; write it in other words, or put "
                "another chat_template.jinja into the model's folder"
            )
        return plain, mark

    def turn(self) -> tuple[str, str]:
        """What the template writes behind a user's message: (up to where an answer is to begin, up
        to where it puts the text of one). UserError if it fails or leaves a message out."""
        asked, answer = unused_characters(self.source, 2)
        messages = [Message("user", (asked,)), Message("assistant", (answer,))]
        contents = _contents(messages, [[asked], [answer]])
        _, found, prompt = self.apply(contents[:1]).rpartition(asked)
        _, again, turn = self.apply(contents, prompt=False).rpartition(asked)
        turn, told, _ = turn.partition(answer)
        if not (found and again and told):
            raise UserError("the chat template leaves out the question or an answer")
        return prompt, turn

    def apply(self, contents: list[dict], prompt: bool = True) -> str:
        """The text of messages in transformers' form, unchecked; with the beginning of an answer if
        `prompt`. UserError if the template fails."""
        try:
            return self._tokenizer.apply_chat_template(
                contents, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is a program: it can fail in any way
            why = "".join(c if c.isprintable() else "?" for c in one_line(error, 200))
            raise UserError(f"the chat template failed: {why}") from error

    def _check_pictures(self, messages: Sequence[Message], plain: str, outside: list[str]) -> None:
        count = sum(isinstance(part, Picture) for m in messages for part in m.parts)
        for text in (plain, "".join(outside)):
            if text.count(self.placeholder) != count:
                raise UserError(
                    "the chat template does not place one image placeholder per picture: "
                    f"{text.count(self.placeholder)} for {count}"
                )

    def _check_places(self, messages: Sequence[Message], outside: list[str]) -> None:
        """Pictures stand between the texts where they belong, or all in front of their message."""
        found = [text.count(self.placeholder) for text in outside]
        in_place, in_front = [0] * len(found), [0] * len(found)
        gap = 0
        for message in messages:
            first = gap
            for part in message.joined:
                if isinstance(part, str):
                    gap += 1
                else:
                    in_place[gap] += 1
                    in_front[gap if part.inside else first] += 1
        if found not in (in_place, in_front):
            raise UserError(
                "the chat template moves pictures to other places than the prompt says; write "
                "questions without <image> (pictures then stand in front)"
            )


def _contents(messages: Sequence[Message], texts: Sequence[Sequence[str]]) -> list[dict]:
    """The messages as templates take them, with `texts` in the place of their own."""
    found = []
    for message, own in zip(messages, texts, strict=True):
        words = iter(own)
        parts = [
            {"type": "text", "text": next(words)} if isinstance(part, str) else {"type": "image"}
            for part in message.joined
        ]
        found.append({"role": message.role, "content": parts})
    return found


def _apart(shown: str, begin: str, end: str) -> tuple[list[str], list[str]]:
    """What stands outside and inside the marks, in order; one more outside than inside."""
    pieces = re.split(f"{begin}([^{begin}{end}]*){end}", shown)
    return pieces[::2], pieces[1::2]


def _check_texts(
    messages: Sequence[Message], texts: list[str], outside: list[str], inside: list[str]
) -> None:
    owners = [number for number, message in enumerate(messages) for _ in message.texts]
    if inside != texts:
        wrong = next((i for i, text in enumerate(texts) if inside[i : i + 1] != [text]), -1)
        what, way_out = _named(messages, owners[wrong])
        done = "moves or repeats" if texts[wrong] in inside else "leaves out or changes"
        raise UserError(f"the chat template {done} {what}; {way_out}")
    for i, text in enumerate(texts):
        role, neighbour = messages[owners[i]].role, messages[owners[i - 1]].role if i else ""
        before, after = outside[i], outside[i + 1]
        in_a_word = before[-1:].isalnum() and not text[:1].isspace()
        in_a_word |= after[:1].isalnum() and not text[-1:].isspace()
        # Some templates write the system message into the first user message: a space is enough.
        between = before if {role, neighbour} == {"system", "user"} else before.strip()
        if in_a_word or (i and owners[i] != owners[i - 1] and not between):
            what, way_out = _named(messages, owners[i])
            raise UserError(f"the chat template glues {what} to what stands beside it; {way_out}")


def _named(messages: Sequence[Message], number: int) -> tuple[str, str]:
    """(what a message is, what to do if the template cannot write it)."""
    role = messages[number].role
    if role == "system":
        return "the system message", 'use prompt.system="" and say it in prompt.instruction'
    if number == len(messages) - 1:
        return "the question", "use the chat template of an instruction-tuned vision-language model"
    turn = sum(message.role == role for message in messages[: number + 1])
    what = "question" if role == "user" else "answer"
    return f"the {what} of demonstration {turn}", "use prompt.demo_layout=text"


def _squeezed(text: str) -> str:
    """The text without white space: templates may strip it from the ends of texts."""
    return "".join(text.split())


def chat_template(folder: str | pathlib.Path) -> str:
    """The chat template of a checkpoint folder, by transformers' precedence.

    chat_template.jinja, then chat_template.json, then tokenizer_config.json (which alone may hold
    several; the one named "default" counts). Raises UserError if there is none.
    """
    folder = pathlib.Path(folder)
    for name in TEMPLATE_FILES:
        if name.endswith(".jinja"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
            continue
        template = read_optional_json(folder / name).get("chat_template")
        if isinstance(template, list):
            template = {t.get("name"): t.get("template") for t in template}.get("default")
        if isinstance(template, str):
            return template
    raise UserError(
        f"{folder}: no chat template ({', '.join(TEMPLATE_FILES[:-1])} or {TEMPLATE_FILES[-1]}); "
        "is this an instruction-tuned model?"
    )


def unused_characters(text: str, count: int) -> list[str]:
    """So many private-use characters that are not in `text`."""
    taken = set(text)
    free = (c for c in map(chr, range(0xE000, 0x110000)) if c not in taken)
    return [next(free) for _ in range(count)]
