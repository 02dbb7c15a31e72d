"""The format `lines`: its strict reader is the reader of earlier versions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.data_pipelines.path_formats.registry import make_format

BITS = ["Reply:", "reply:", "**Reply:**", "a", " ", "\n", "\r", "```", "say Reply: x", "\u2028"]


def earlier(text):
    """Until version 0.1: the first line that starts with "Reply:", nothing else counts."""
    head, reply = [], None
    for line in text.split("\n"):
        if reply is not None:
            reply += "\n" + line
        elif line.startswith("Reply:"):
            reply = line[6:]
        elif line.strip():
            head.append(line)
    return tuple(head), reply if reply is None else reply.removeprefix(" ")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(BITS), max_size=30).map("".join), st.booleans())
def test_strict_is_the_earlier_reader(text, finished):
    """Every text gives the same steps and reply, none merged, and a status that fits."""
    read = make_format("lines", strict=True, max_steps=2).parse(text, finished=finished)
    steps, reply = earlier(text)
    assert (read.steps, read.reply) == (steps, reply)
    ended = "no_reply" if reply is None else "ok" if reply.strip() else "empty_reply"
    assert read.status == (ended if finished else "unfinished")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab \r", min_size=1).filter(str.strip), min_size=1, max_size=20),
    st.text("a\n \r*", min_size=1).filter(str.strip),
)
def test_strict_keeps_every_character(steps, reply):
    """White space and carriage returns included."""
    strict = make_format("lines", strict=True, max_steps=2)
    read = strict.parse("".join(strict.pieces(steps, reply)))
    assert (read.steps, read.reply, read.status) == (tuple(steps), reply, "ok")


@pytest.mark.parametrize(
    "text, reply",
    [
        ("A\nFinal Answer: R", "R"),
        ("A\n- **Response:** R", "R"),
        ("A\n**7. Reply:** R", "R"),
        ("A\n## Final Response:\n\nR", "R"),
        ("A\n__Answer__\nR", "R"),
        ("A\nReply: **R** now", "**R** now"),
        ("A\nReply:\n* R\n* S", "* R\n* S"),
        ("A\n最终回答：R", "R"),
        ("A\nReply", None),
        ("A\n> Reply\nR", None),
        ("A\nAnswer the question: B", None),
        ("```\nReply: R", None),
        ("Use ```code``` here\nReply: R", "R"),
    ],
)
def test_ways_to_announce_a_reply(text, reply):
    """Markdown around the word is taken off, none of the reply's own; other lines are steps."""
    assert make_format("lines").parse(text).reply == reply
