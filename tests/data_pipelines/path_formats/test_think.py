"""The format `think`, beyond the cases: nothing that a user sees is kept from the judge."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.path_formats.registry import make_format


@pytest.mark.parametrize(
    "text, opened, steps, reply, status",
    [
        # A policy that was led to think opens once more.
        ("<think>\nA.\n\n<think>\nB.\n</think>\n\nR", False, ("A.", "B."), "R", "ok"),
        ("<think>\nA.\n</think>\n\nR", True, ("A.",), "R", "ok"),
        ("A.</think>R<think>B</think>S", False, ("A.",), "R<think>B</think>S", "several_closings"),
        ("<think>A</think>R <think>B", False, ("A",), "R <think>B", "irregular"),
        ("<think>A</think>R <answer>S</answer>", False, ("A",), "R <answer>S</answer>", "ok"),
        ("<think>A</think><answer>R</answer> and S", False, ("A",), "R and S", "ok"),
        ("<think>A</think>so \\boxed{3}", False, ("A",), "so \\boxed{3}", "ok"),
        ("</think>\n\nR", True, (), "R", "no_thinking"),
        ("<think></think>", False, (), None, "empty_reply"),
        ("<think>A\n \n\n B \n</think>R", False, ("A", "B"), "R", "ok"),
        ("<think>A\r\n\r\nB</think>R\r\n", False, ("A", "B"), "R", "ok"),
        ("", False, (), None, "no_reply"),
        ("", True, (), None, "unclosed"),
    ],
)
def test_read(text, opened, steps, reply, status):
    read = make_format("think").parse(text, opened=opened)
    assert (read.steps, read.reply, read.status) == (steps, reply, status)


@pytest.mark.parametrize(
    "text, reply, status",
    [
        ("Sure, here", None, "unfinished"),  # it may be thinking whose tag the prompt holds
        ("<think>A</think>\n\nSure, he", "Sure, he", "unfinished"),
        ("<think>A</think>", None, "unfinished"),
        ("Sure.\n<think>A", None, "answer_before_thinking"),
    ],
)
def test_a_turn_that_was_cut(text, reply, status):
    """It is never ok, and a reply is never guessed."""
    read = make_format("think").parse(text, finished=False)
    assert (read.reply, read.status) == (reply, status)


def test_pieces_as_the_tokenizer_wants_them():
    """Newlines at the end of a piece, the closing tag with the last step: a prefix of fewer than
    all steps is still inside the thinking."""
    think = make_format("think")
    assert think.pieces(["A.", "B."], "R") == ["<think>\nA.\n\n", "B.\n</think>\n\n", "R"]
    assert think.pieces(["A."], "R", opened=True) == ["A.\n</think>\n\n", "R"]
    assert make_format("think", split="line").pieces(["A", "B"], "R")[0] == "<think>\nA\n"
    assert think.markers == ("<think>", "</think>")
