"""The formats `ssui`, `mulberry` and `llava_cot`: headings in any dress, irregular ones told."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.path_formats.registry import make_format

DRESSES = [
    "{}: t",
    "**{}:** t",
    "### {}\nt",
    "- {} - t",
    "> {}：t",
    "**Step 3: {}**\nt",
    "1) {}:\n\nt\n",
]


@pytest.mark.parametrize("dress", DRESSES)
def test_ssui_headings_in_any_markdown(dress):
    """However a heading is written, its step is `Heading: text`."""
    text = "\n".join(dress.format(heading) for heading in SSUI).lower() + "\n**Reply:** R"
    read = make_format("ssui").parse(text)
    assert (read.steps, read.reply, read.status) == (tuple(f"{h}: t" for h in SSUI), "R", "ok")


def ssui(headings, end="\nReply: R"):
    return "\n".join(f"{heading}: t" for heading in headings) + end


@pytest.mark.parametrize(
    "text, status",
    [
        (ssui(SSUI), "ok"),
        (ssui(reversed(SSUI)), "irregular"),
        (ssui([*SSUI, SSUI[0]]), "irregular"),
        (ssui(SSUI).replace("Request: t", "Request:"), "irregular"),
        (ssui(SSUI, "\nReply:"), "empty_reply"),
        ("```\n" + ssui(SSUI) + "\n```", "no_reply"),
        ("Let me see.\n" + ssui(SSUI), "ok"),
    ],
)
def test_ssui_sections_must_be_all_there(text, status):
    """Missing, empty, repeated or turned sections are irregular; text before them is no step."""
    read = make_format("ssui").parse(text)
    assert read.status == status
    assert all(step.startswith(SSUI) for step in read.steps)


MULBERRY = """### Image Description:
A kitchen.

Two bottles.

### Rationales:
Both are cleaners.

### Let's think step by step.

### Step 1:
They react.

### Step 2:
Somebody may breathe it.

### The final answer is: Keep them apart.
And open a window."""


def test_mulberry_is_written_and_read_as_its_data():
    steps = ("A kitchen.\n\nTwo bottles.", "Both are cleaners.", "They react.")
    steps += ("Somebody may breathe it.",)
    reply = "Keep them apart.\nAnd open a window."
    mulberry = make_format("mulberry")
    assert "".join(mulberry.pieces(steps, reply)) == MULBERRY
    read = mulberry.parse(MULBERRY)
    assert (read.steps, read.reply, read.status) == (steps, reply, "ok")


@pytest.mark.parametrize(
    "change, status",
    [
        (("### Step 2:", "### Step 3:"), "irregular"),
        (("### Rationales:", "### Reasons:"), "irregular"),
        (("### Let's think step by step.\n", ""), "ok"),
        (("### Let's", "**Let’s"), "ok"),
        (("### The final answer is:", "**Final Answer:**"), "ok"),
        (("### The final answer is:", "So"), "no_reply"),
    ],
)
def test_mulberry_headings(change, status):
    assert make_format("mulberry").parse(MULBERRY.replace(*change)).status == status


LLAVA = "<SUMMARY>A</SUMMARY>\n\n<CAPTION>B</CAPTION>\n\n<REASONING>C</REASONING>\n\n"


@pytest.mark.parametrize(
    "text, steps, reply, status",
    [
        (LLAVA + "<CONCLUSION>R</CONCLUSION>", "ABC", "R", "ok"),
        (LLAVA + "<CONCLUSION> R", "ABC", "R", "ok"),
        (LLAVA + "<CONCLUSION>R</CONCLUSION> S", "ABC", "R S", "ok"),
        (LLAVA.replace("</CAPTION>", "") + "<conclusion>R", "ABC", "R", "ok"),
        (LLAVA.replace("B", " "), "AC", None, "no_reply"),
        (LLAVA.replace("B", " ") + "<CONCLUSION>R", "AC", "R", "irregular"),
        (LLAVA + "<CONCLUSION></CONCLUSION>", "ABC", None, "empty_reply"),
        ("<CAPTION>B</CAPTION><CONCLUSION>R", "B", "R", "irregular"),
        (LLAVA + "<CONCLUSION>R <SUMMARY>A", "ABC", "R <SUMMARY>A", "irregular"),
        ("R", "", None, "no_reply"),
    ],
)
def test_llava_cot(text, steps, reply, status):
    """A closing tag may be missing; what stands behind the conclusion's is part of the reply."""
    read = make_format("llava_cot").parse(text)
    assert (read.steps, read.reply, read.status) == (tuple(steps), reply, status)
