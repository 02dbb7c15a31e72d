"""The format `think`: thinking between two tags, then the reply, as reasoning models write."""

from __future__ import annotations

from collections.abc import Sequence

from srpo_jax.data_pipelines.path_formats.base import FormatOptions, PathFormat, Reading, newlines
from srpo_jax.data_pipelines.path_formats.cutting import cut_steps
from srpo_jax.data_pipelines.path_formats.statuses import (
    ANSWER_BEFORE_THINKING,
    EMPTY_REPLY,
    IRREGULAR,
    NO_REPLY,
    NO_THINKING,
    OK,
    SEVERAL_CLOSINGS,
    UNCLOSED,
)
from srpo_jax.errors import UserError

_ANSWER = ("<answer>", "</answer>")
_BOX = ("<|begin_of_box|>", "<|end_of_box|>")  # GLM-4.1V writes its short answer between these
_HOW = {
    "paragraph": "with an empty line after each step",
    "line": "each step on a line of its own",
    "sentence": "each step one sentence",
}


class Think(PathFormat):
    """`<think>`, the steps, `</think>`, the reply; options.markers has the tags, options.split
    says what cuts the thinking into steps.

    The opening tag may be missing, because many chat templates write it into the prompt. Blocks
    that follow each other are one thinking. The first closing tag that no other block follows
    begins the reply, of which one pair of answer tags and GLM's box tokens are taken off; nothing
    else that a user would see is ever left out of it.
    """

    name = "think"
    advice = (
        "a step must be one piece as format.split cuts it (a paragraph has no empty line), "
        "and no text may hold the format's tags or begin with <answer>"
    )

    def __init__(self, options: FormatOptions | None = None):
        super().__init__(options)
        tags = self.options.markers
        if len(set(tags)) != 2 or len(tags) != 2 or not all(tag.strip() for tag in tags):
            raise UserError(
                f"format.markers={tags!r}: name two different tags, as in ('<think>', '</think>')"
            )
        self.markers = tags
        self._open, self._close = tags
        self.opening = f"{self._open}\n"

    @property
    def instruction(self) -> str:
        how = _HOW[self.options.split]
        return (
            "{question}\n\n"
            f"First think between {self._open} and {self._close}, {how}: what the picture shows, "
            "what is asked, what the two mean together, and what could follow. "
            f"Behind {self._close} write only your reply."
        )

    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        gap = "\n\n" if self.options.split == "paragraph" else "\n"
        texts = [self.tidied(step) + gap for step in steps]
        if texts:
            texts[0] = ("" if opened else self.opening) + texts[0]
            texts[-1] = texts[-1].removesuffix(gap) + f"\n{self._close}\n\n"
        return [*texts, self.tidied(reply)]

    def read(self, text: str, *, opened: bool = False) -> Reading:
        text = newlines(text)
        first, close = text.find(self._open), text.find(self._close)
        if not opened and close < 0 and first < 0:
            reply = text.strip()
            return Reading((), reply or None, 0, NO_THINKING if reply else NO_REPLY)
        if not opened and first >= 0 and text[:first].strip() and not 0 <= close < first:
            return Reading((), None, None, ANSWER_BEFORE_THINKING)
        steps, at = self._thinking(text)
        if at is None:
            return Reading(tuple(steps), None, None, UNCLOSED)
        rest = text[at:]
        reply = _bare(rest)
        status = NO_THINKING if not steps else OK
        if not reply:
            status = EMPTY_REPLY
        elif self._close in rest:
            status = SEVERAL_CLOSINGS
        elif self._open in rest:
            status = IRREGULAR  # it goes on thinking, where a user sees it
        return Reading(tuple(steps), reply or None, at + len(rest) - len(rest.lstrip()), status)

    def _thinking(self, text: str) -> tuple[list[tuple[int, str]], int | None]:
        """The steps, and the offset behind the closing tag of the last block, None without one."""
        steps, at = [], 0
        while True:
            close = text.find(self._close, at)
            end = len(text) if close < 0 else close
            # An opening tag inside only cuts: a policy that was led to think may open once more.
            for block in text[at:end].split(self._open):
                steps += cut_steps(block, self.options.split, at)
                at += len(block) + len(self._open)
            if close < 0:
                return steps, None
            at = close + len(self._close)
            if not text[at:].lstrip().startswith(self._open):
                return steps, at


def _bare(text: str) -> str:
    """A reply without its answer tags and without box tokens."""
    for token in _BOX:
        text = text.replace(token, "")
    text = text.strip()
    if text.startswith(_ANSWER[0]):
        text = text[len(_ANSWER[0]) :].replace(_ANSWER[1], "", 1).strip()
    return text
