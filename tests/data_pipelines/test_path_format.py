"""A path as text and as tokens: rendering and parsing are inverse, prefixes are stable."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.data_pipelines.path_format import parse_path, render_pieces, tokenize_reference
from srpo_jax.data_pipelines.records import Record

LINE = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1)
STEP = LINE.filter(lambda s: s.strip() and not s.startswith("Reply:"))


@given(st.lists(STEP, min_size=1, max_size=6), st.text(min_size=1))
def test_parse_is_the_inverse_of_render(steps, reply):
    """Any steps and reply that a record may hold come back exactly."""
    assert parse_path("".join(render_pieces(steps, reply))) == (tuple(steps), reply)


def test_parse_generated_text():
    """No marker: no reply. Blank lines are no steps. The first marker line starts the reply."""
    assert parse_path("a\nb") == (("a", "b"), None)
    assert parse_path("") == ((), None)
    assert parse_path("a\n\n  \nb\nReply:") == (("a", "b"), "")
    assert parse_path("a\nReply: x\nReply: y") == (("a",), "x\nReply: y")
    assert parse_path("say Reply: x") == (("say Reply: x",), None)


class Bytes:
    """A processor of bytes, with two end tokens of which the first is used."""

    eos_ids = (257, 258)

    def encode(self, text, after_text):
        return list(text.encode())


def test_tokens_of_the_reference():
    """n steps and the reply, each on its own, int32; only the reply ends the turn."""
    record = Record(id="r", images=(), question="q", steps=("ab", "c"), reply="d")
    pieces = tokenize_reference(record, Bytes())
    assert [bytes(p[p < 256].astype(np.uint8)) for p in pieces] == [b"ab\n", b"c\n", b"Reply: d"]
    assert all(piece.dtype == np.int32 for piece in pieces)
    assert [257 in piece for piece in pieces] == [False, False, True] and pieces[-1][-1] == 257
