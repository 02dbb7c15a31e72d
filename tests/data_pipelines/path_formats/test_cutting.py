"""Text cut into steps: where paragraphs, lines and sentences end, and offsets that are true."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.data_pipelines.path_formats.cutting import cut_steps
from srpo_jax.data_pipelines.path_formats.registry import FORMATS, make_format


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It is 1.5 m, e.g. a door. See Fig. 2.", ["It is 1.5 m, e.g. a door.", "See Fig. 2."]),
        ("Dr. Lee came. He left.", ["Dr. Lee came.", "He left."]),
        ("Well... maybe. Yes", ["Well... maybe.", "Yes"]),
        ("1. First look.\n2. Then act.", ["1. First look.", "2. Then act."]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("这是刀。很危险！不行", ["这是刀。", "很危险！", "不行"]),
        ("A.\n\nB.", ["A.", "B."]),
    ],
)  # fmt: skip
def test_sentences(text, sentences):
    assert [step for _, step in cut_steps(text, "sentence")] == sentences


def test_paragraphs_and_lines():
    """White space in an empty line does not matter; fences and blanks are no steps."""
    text = "A\nB\n \t\n\n  C \n\n```\n\nD"
    assert [step for _, step in cut_steps(text, "paragraph")] == ["A\nB", "C", "D"]
    assert [step for _, step in cut_steps(text, "line")] == ["A", "B", "C", "D"]


@given(st.text("ab.!\n `。", max_size=40), st.sampled_from(["paragraph", "line", "sentence"]))
def test_offsets_are_those_of_the_steps(text, split):
    """Each step stands at its offset, in order; only blanks and fences are lost."""
    end, rest = 0, ""
    for at, step in cut_steps(text, split, 100):
        at -= 100
        assert at >= end and text[at : at + len(step)] == step == step.strip() != ""
        rest += text[end:at]
        end = at + len(step)
    assert not (rest + text[end:]).strip(" \n`ab.!。") and "a" not in rest.replace("```a", "")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "bit", ["#", "* ", "> ", "1.", "_", " ", "\n", "\n \n", "<think>", "`", ".", "Step 1 "]
)
def test_no_text_makes_reading_slow(name, bit):
    """A model that repeats itself for a whole window costs no more than its length."""
    start = time.monotonic()
    make_format(name, split="sentence").parse(bit * (60_000 // len(bit)))
    assert time.monotonic() - start < 3
