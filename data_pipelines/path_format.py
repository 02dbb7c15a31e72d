"""How a reasoning path is written as text and as tokens, and how text is read back.

One line a step, then a line "Reply: ..." that runs to the end of the turn. Each piece is
tokenised on its own, so that a prefix of i pieces is the same tokens whatever follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.records import REPLY_MARKER, Record


def render_pieces(steps: tuple[str, ...] | list[str], reply: str) -> list[str]:
    """[step 1 + newline, ..., step n + newline, "Reply: " + reply].

    The text of the whole path is their concatenation. The end-of-turn token follows the last
    piece as an id, never as text.
    """
    return [step + "\n" for step in steps] + [f"{REPLY_MARKER} {reply}"]


def parse_path(text: str) -> tuple[tuple[str, ...], str | None]:
    """(steps, reply) of a generated text: the inverse of joining `render_pieces`.

    The first line that starts with "Reply:" starts the reply, which runs to the end and may hold
    line breaks. reply is None when no line does. Blank lines are not steps.
    """
    lines = text.split("\n")
    steps = []
    for i, line in enumerate(lines):
        if line.startswith(REPLY_MARKER):
            reply = "\n".join([line[len(REPLY_MARKER) :], *lines[i + 1 :]])
            return tuple(steps), reply.removeprefix(" ")
        if line.strip():
            steps.append(line)
    return tuple(steps), None


def tokenize_reference(record: Record, processor: Any) -> list[np.ndarray]:
    """The reference path as n + 1 int32 arrays: the steps, then the reply with end of turn.

    `processor` is srpo_jax.models.hf.processor.Processor or anything with its encode and eos_ids.
    """
    texts = render_pieces(record.steps, record.reply)
    pieces = [list(processor.encode(text, after_text=i > 0)) for i, text in enumerate(texts)]
    pieces[-1].append(processor.eos_ids[0])
    return [np.asarray(piece, np.int32) for piece in pieces]


class Lines:
    """One line a step, then the reply: what a prompt needs of this path format."""

    name = "lines"
    markers: tuple[str, ...] = ()
    opening = ""
    instruction = (
        "{question}\n\nThink before you answer: write one short step a line, then a last line that "
        f'begins with "{REPLY_MARKER}" and holds your answer.'
    )

    def pieces(self, steps: Sequence[str], reply: str) -> list[str]:
        """See render_pieces."""
        return render_pieces(list(steps), reply)


LINES = Lines()
