"""A path that the policy wrote itself, as tokens in pieces and as the text of a record."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.path_formats.tokens import cut_tokens
from srpo_jax.data_pipelines.records import Record
from srpo_jax.explore.self_reference import with_reference
from srpo_jax.models.hf.processor import Processor
from tests.support.tiny import tiny_qwen2_5_vl


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor.from_dir(tiny_qwen2_5_vl(tmp_path_factory.mktemp("model") / "tiny", seed=3))


@pytest.mark.parametrize(
    "name, text, pieces",
    [
        ("lines", "One.\n\nTwo.\nReply: a\nb", ["One.\n\n", "Two.\n", "Reply: a\nb"]),
        ("think", "<think>\nA\nB\n\nC</think>\n\nR", ["<think>\nA\nB\n\n", "C</think>\n\n", "R"]),
        ("think", "<think>这是刀。\n\n险</think>不", ["<think>这是刀。\n\n", "险</think>", "不"]),
        ("free", "One.\n\nTwo.\n\nThree.", ["One.\n\n", "Two.\n\n", "Three."]),
    ],
)  # fmt: skip
def test_real_tokens_become_a_record(processor, name, text, pieces):
    """The tokens of a whole turn are cut behind the newlines of each step; the record has a step
    for each of these pieces, however few steps the format would merge them to."""
    path_format = make_format(name, max_steps=1)
    tokens = [*processor.encode(text), processor.eos_ids[0]]
    found = cut_tokens(tokens, processor, path_format)
    assert found is not None and [processor.decode(piece) for piece in found] == pieces
    assert [token for piece in found for token in piece.tolist()] == tokens
    made = with_reference(Record("r", (), "q", (), ""), found, processor, path_format)
    assert len(made.steps) == len(pieces) - 1
    path_format.check(made.steps, made.reply)
