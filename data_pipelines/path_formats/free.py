"""The format `free`: running text without any mark, of which everything is the reply."""

from __future__ import annotations

from collections.abc import Sequence

from srpo_jax.data_pipelines.path_formats.base import PathFormat, Reading, newlines
from srpo_jax.data_pipelines.path_formats.cutting import cut_steps
from srpo_jax.data_pipelines.path_formats.statuses import NO_REPLY, OK

_HOW = {
    "paragraph": "each step in a paragraph of its own",
    "line": "each step on a line of its own",
    "sentence": "one step a sentence",
}


class Free(PathFormat):
    """Paragraphs, lines or sentences (options.split). All but the last are steps.

    A user sees all of it, so the reply that is judged is the whole text. A record's reply may be
    the last piece alone, or the whole text again.
    """

    name = "free"
    advice = (
        "each step, and what the reply adds to them, must be one piece as format.split cuts it; "
        "make steps of all but the last"
    )

    @property
    def instruction(self) -> str:
        how = _HOW[self.options.split]
        return f"{{question}}\n\nThink it through step by step, {how}, and end with your answer."

    def pieces(self, steps: Sequence[str], reply: str, *, opened: bool = False) -> list[str]:
        gap = "\n\n" if self.options.split == "paragraph" else "\n"
        texts = [self.tidied(step) + gap for step in steps]
        return [*texts, self.tidied(reply).removeprefix("".join(texts))]

    def expected_reply(self, steps: Sequence[str], reply: str) -> str:
        return "".join(self.pieces(steps, reply))

    def read(self, text: str, *, opened: bool = False) -> Reading:
        text = newlines(text)
        found = cut_steps(text, self.options.split)
        if not found:
            return Reading((), None, None, NO_REPLY)
        return Reading(tuple(found[:-1]), text.strip(), found[-1][0], OK)
