"""Paths as tokens: pieces on their own, a record's refusal named, sampled turns cut like pieces."""

from __future__ import annotations

import dataclasses
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings

from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.path_formats.tokens import (
    as_read_back,
    cut_tokens,
    tokenize_reference,
)
from srpo_jax.data_pipelines.records import Record, RecordError
from tests.data_pipelines.path_formats.strategies import VALID


class Bytes:
    """A processor of UTF-8 bytes, with two end tokens of which the first is used."""

    eos_ids = (257, 258)

    def encode(self, text, after_text=False):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def test_tokens_of_the_reference():
    """n steps and the reply, each on its own, int32; only the reply ends the turn."""
    record = Record(id="r", images=(), question="q", steps=("ab", "c"), reply="d")
    pieces = tokenize_reference(record, Bytes(), make_format())
    assert [bytes(p[p < 256].astype(np.uint8)) for p in pieces] == [b"ab\n", b"c\n", b"Reply: d"]
    assert all(piece.dtype == np.int32 for piece in pieces)
    assert [257 in piece for piece in pieces] == [False, False, True] and pieces[-1][-1] == 257


def test_a_record_that_the_format_cannot_write_is_named():
    record = Record(id="r7", images=(), question="q", steps=("a\nb",), reply="d")
    with pytest.raises(RecordError, match=r"record 'r7': reference.steps\[0\].*format.kind=lines"):
        tokenize_reference(record, Bytes(), make_format())


class Normalising(Bytes):
    """A processor that composes letters, as many do, and loses some signs."""

    def encode(self, text, after_text=False):
        text = unicodedata.normalize("NFC", text)
        return super().encode(text.replace("\u2603", "?").replace("\u2604", ""), after_text)

    def decode(self, ids, after_text=False):
        return super().decode(ids)


def test_texts_become_what_their_tokens_read():
    """A letter and its accent become one sign, as they are in the tokens; white space at the ends
    is what the format makes of it; all else stays, and the tokens are the same as before."""
    steps, reply = ("cafe\u0301", " a\u0323\u0301\r", "plain ①"), "\u1112\u1161\u11ab"
    record = Record(id="r", images=(), question="e\u0301?", steps=steps, reply=reply)
    found = as_read_back(record, Normalising(), make_format())
    assert found.steps == ("caf\u00e9", "\u1ea1\u0301", "plain ①") and found.reply == "\ud55c"
    assert found.question == record.question
    pieces = tokenize_reference(found, Normalising(), make_format())
    before = tokenize_reference(record, Normalising(), make_format())
    assert [p.tolist() for p in pieces] == [p.tolist() for p in before]
    text = Normalising().decode(np.concatenate(pieces).tolist())
    assert text == "".join(make_format().pieces(found.steps, found.reply))
    assert as_read_back(found, Normalising(), make_format()) == found


@pytest.mark.parametrize(
    "sign, read", [("\u2603", "'y step: ? is it'"), ("\u2604", "'y step:  is it'")]
)
def test_a_text_that_the_tokenizer_cannot_write_is_named(sign, read):
    """Which text of which record, and how it would be read, on one line."""
    step = f"my step: {sign} is it"
    record = Record(id="r7", images=(), question="q", steps=("ok", step), reply="d")
    with pytest.raises(RecordError) as caught:
        as_read_back(record, Normalising(), make_format())
    assert str(caught.value) == (
        "record 'r7': reference.steps[1] cannot be written by this policy's tokenizer: "
        f"'y step: {sign} is it' reads back as {read}; rephrase it"
    )
    other = dataclasses.replace(record, steps=("ok",), reply=sign)
    with pytest.raises(RecordError, match="record 'r7': reference.reply cannot be written"):
        as_read_back(other, Normalising(), make_format())


@pytest.mark.parametrize("name", VALID)
def test_a_turn_is_cut_into_the_pieces_it_was_written_in(name):
    """Of a turn that was written in pieces the tokens are cut where the pieces end, also between
    characters of several tokens."""
    path_format, steps, reply = VALID[name]
    processor = Bytes()

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(steps, reply)
    def check(steps, reply):
        record = Record("r", (), "q", tuple(steps), reply)
        for opened in (False, True):
            pieces = tokenize_reference(record, processor, path_format, opened)
            tokens = np.concatenate(pieces).tolist()
            found = cut_tokens(tokens, processor, path_format, opened)
            assert found is not None
            assert [p.tolist() for p in found] == [p.tolist() for p in pieces]

    check()


@pytest.mark.parametrize(
    "name, text, pieces",
    [
        ("lines", "A\n\n  B\nReply: R", ["A\n\n", "  B\n", "Reply: R"]),
        ("lines", "A\n```\nB\n```\n**Reply**\nR", ["A\n```\n", "B\n```\n", "**Reply**\nR"]),
        ("think", "<think>A\n\n\nB</think>R", ["<think>A\n\n\n", "B</think>", "R"]),
        ("think", "A</think><think>B</think>R", ["A</think><think>", "B</think>", "R"]),
        ("free", "A\n\nB\n\nC\n", ["A\n\n", "B\n\n", "C\n"]),
        ("lines", "A\nB", None),
        ("lines", "Reply: R", None),
        ("lines", "A\r\nReply: R", None),
        ("think", "<think>A</think>R</think>", None),
        ("ssui", "Analyze Visual Context: A\nReply: R", None),
    ],
)  # fmt: skip
def test_what_a_policy_wrote_is_cut(name, text, pieces):
    """Borders lie where the next step or the reply begins; what is not ok is not cut."""
    found = cut_tokens([*text.encode(), 257], Bytes(), make_format(name))
    assert (found and [Bytes().decode(piece.tolist()) for piece in found]) == pieces


def test_a_border_is_never_inside_a_character():
    """Where the last character of a step takes several tokens, all of them belong to it."""
    tokens = [*"这是刀。很危险！不行".encode(), 257]
    found = cut_tokens(tokens, Bytes(), make_format("free", split="sentence"))
    assert found is not None
    assert [Bytes().decode(piece.tolist()) for piece in found] == ["这是刀。", "很危险！", "不行"]


def test_a_token_across_a_border_is_not_cut():
    """A newline that shares its token with the next step belongs to no piece."""

    class Pairs(Bytes):
        def decode(self, ids):
            return "".join("A\nBC\nReply: R"[2 * i : 2 * i + 2] for i in ids)

    assert cut_tokens(range(7), Pairs(), make_format()) is None
