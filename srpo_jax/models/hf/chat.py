"""Messages -> the text that a checkpoint's chat template makes of them, checked.

A template is a program from a stranger. Some drop a system message, take the thinking out of
earlier answers, print a Python list, or write a text where no space parts it from the next word:
nothing fails then, and the policy is asked something else. So every conversation is rendered twice,
once as it is and once with a mark on both sides of every text, which shows where the texts went.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from srpo_jax.data_pipelines.prompt import Message, Picture
from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.hf_folder import read_optional_json
from srpo_jax.models.hf.template_probe import LARGEST_TEXT, check_bounded

# Where transformers' processors look for a template, in their order; then where tokenizers do.
PROCESSOR_FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja")
TEMPLATE_FILES = (*PROCESSOR_FILES, "tokenizer_config.json")
LARGEST_TEMPLATE = 1 << 20  # characters
# What every template must be able to write.
PROBE = Message("user", (Picture(), "What does this picture show?"))
# What it must write in bounds: every role, with and without pictures, one turn and several.
PROBES = (
    (PROBE,),
    (Message("user", ("Why?",)), Message("assistant", ("So.",))),
    (Message("system", ("Be safe.",)), PROBE, Message("assistant", ("A dog.",)), PROBE),
)
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
                "alone; put one for texts and pictures in its place"
            )
        self._check_pictures(messages, plain, outside)
        _check_texts(messages, [t for own in cut_texts for t in own], outside, inside)
        self._check_places(messages, outside)
        if _squeezed(plain) != _squeezed(shown.replace(begin, "").replace(end, "")):
            raise UserError(
                "the chat template changes a text of the prompt; write it in other words, or put "
                "another chat template into the model's folder"
            )
        return plain, mark

    def check_bounded(self) -> None:
        """UserError if PROBE or a longer conversation takes a time or a memory that no template
        needs."""
        tokens = json.dumps(self._tokenizer.special_tokens_map, default=str)
        contents = [_contents(messages, [list(m.texts) for m in messages]) for messages in PROBES]
        check_bounded(self.source, tokens, json.dumps(contents))

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
            text = self._tokenizer.apply_chat_template(
                contents, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is a program: it can fail in any way
            why = "".join(c if c.isprintable() else "?" for c in one_line(error, 200))
            raise UserError(f"the chat template failed: {why}") from error
        if len(text) > LARGEST_TEXT:
            raise UserError(f"the chat template writes a prompt of {len(text)} characters")
        return text

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
    """The chat template of a checkpoint folder, by transformers' precedence: that of the processor
    (PROCESSOR_FILES), else the tokenizer's. Where a file holds several, the one named "default".

    Raises UserError if there is none, if one is no text or above LARGEST_TEMPLATE, or if two of
    the processor's files have different ones: transformers then reads one as a processor's and the
    other as a tokenizer's.
    """
    folder = pathlib.Path(folder)
    found = {name: _template_in(folder / name) for name in TEMPLATE_FILES}
    found = {name: text for name, text in found.items() if text is not None}
    if not found:
        raise UserError(
            f"{folder}: no chat template ({', '.join(TEMPLATE_FILES[:-1])} or "
            f"{TEMPLATE_FILES[-1]}); is this an instruction-tuned model?"
        )
    several = [name for name in PROCESSOR_FILES if name in found]
    # A line's end behind the last word is none of a template's, and files of editors have one.
    if len({found[name].removesuffix("\n") for name in several}) > 1:
        raise UserError(
            f"{folder}: {' and '.join(several)} have different chat templates, and not all tools "
            "read the same one; remove those that are wrong"
        )
    return next(iter(found.values()))


def _template_in(file: pathlib.Path) -> str | None:
    """The chat template that a file of the folder holds, if it holds one."""
    if file.suffix != ".jinja":
        template = read_optional_json(file).get("chat_template")
    elif not file.is_file():
        return None
    elif file.stat().st_size > 4 * LARGEST_TEMPLATE:
        raise UserError(f"{file}: too large for a chat template")
    else:
        try:
            template = file.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"{file}: not readable ({one_line(error, 200)})") from None
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in named}
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not (
        isinstance(template, str) and len(template) <= LARGEST_TEMPLATE
    ):
        raise UserError(f"{file}: its chat template is no text, or a too long one")
    return template


def unused_characters(text: str, count: int) -> list[str]:
    """So many private-use characters that are not in `text`."""
    taken = set(text)
    free = (c for c in map(chr, range(0xE000, 0x110000)) if c not in taken)
    return [next(free) for _ in range(count)]
