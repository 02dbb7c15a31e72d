"""What holds for every path format: written and read are inverse, prefixes stay what they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.data_pipelines.path_formats.base import FormatOptions, Parsed, merged
from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.path_formats.registry import FORMATS, make_format
from srpo_jax.data_pipelines.path_formats.statuses import STATUSES
from tests.data_pipelines.path_formats.strategies import VALID

quick = settings(max_examples=60, deadline=None, derandomize=True)


def clean(text):
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


@pytest.mark.parametrize("name", VALID)
def test_what_is_written_is_read_back(name):
    """A valid path comes back whole, up to white space at the ends of its texts, and `check`
    lets it pass; with the opening in the prompt too. In `free` the reply read is everything."""
    path_format, steps, reply = VALID[name]

    @quick
    @given(steps, reply)
    def check(steps, reply):
        path_format.check(steps, reply)
        for opened in (False, True):
            text = "".join(path_format.pieces(steps, reply, opened=opened))
            assert len(path_format.pieces(steps, reply)) == len(steps) + 1
            read = path_format.parse(text, opened=opened)
            expected = text if path_format.name == "free" else clean(reply)
            assert (read.steps, read.reply, read.status) == (
                tuple(map(clean, steps)),
                expected,
                "ok",
            )

    check()


@pytest.mark.parametrize("name", VALID)
def test_a_prefix_is_the_same_whatever_follows(name):
    """The first i pieces do not depend on later steps; with another continuation behind them the
    turn is read as the first i steps and those of the continuation."""
    path_format, steps, reply = VALID[name]

    @quick
    @given(steps, steps, reply, reply, st.integers(1, 5))
    def check(steps, others, reply, other_reply, at):
        at = min(at, len(steps) - 1, len(others) - 1)
        mixed = (*steps[:at], *others[at:])
        prefix = path_format.pieces(steps, reply)[:at]
        for opened in (False, True):
            whole = path_format.pieces(mixed, other_reply, opened=opened)
            assert opened or whole[:at] == prefix
            read = path_format.parse("".join(whole), opened=opened, given=at)
            assert read.steps == tuple(map(clean, mixed))
            rest = "".join(whole[at:])
            behind = path_format.parse_behind(mixed[:at], rest, opened=opened)
            assert behind == Parsed(read.steps[at:], read.reply, read.status)

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_any_text_is_read(name):
    """No text is an error: it has a status, a reply where that says so, no blank step; and never
    a reply where a turn was cut outside of it."""
    path_format = make_format(name)
    bits = [
        "Reply:", "**Answer**", "<think>", "</think>", "<answer>", "```", "\n", "\n\n", " ", "a.",
        "### Step 1:", "Image Description:", "<SUMMARY>", "</SUMMARY>", "<CONCLUSION>",
        "Analyze Visual Context:", "\r",
    ]  # fmt: skip

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(bits)).map("".join), st.booleans(), st.booleans())
    def check(text, finished, opened):
        read = path_format.parse(text, finished=finished, opened=opened)
        assert read.status in STATUSES and all(step.strip() for step in read.steps)
        assert read.reply is None or read.reply.strip()
        if read.status in ("ok", "several_closings", "no_thinking", "irregular"):
            assert read.reply is not None and finished
        if read.status in ("no_reply", "unclosed", "empty_reply", "answer_before_thinking"):
            assert read.reply is None

    check()


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 30))
def test_merging_leaves_the_given_steps(count, limit, given_steps):
    """Given steps stay, all text stays in order, and there are at most max(limit, given + 1)."""
    steps = [f"s{i}" for i in range(count)]
    result = merged(steps, limit, given_steps)
    assert list(result[:given_steps]) == steps[:given_steps]
    assert "\n".join(result) == "\n".join(steps)
    assert len(result) <= max(limit, given_steps + 1)
    if count <= limit:
        assert list(result) == steps


@pytest.mark.parametrize("name", ["lines", "think", "free", "mulberry"])
def test_more_steps_than_the_limit_are_merged(name):
    """A thinking of 40 steps becomes at most max_steps; a forced prefix of any length stays."""
    path_format = make_format(name, max_steps=5)
    steps = [f"Step number {i}." for i in range(40)]
    text = "".join(path_format.pieces(steps, "R."))
    assert len(path_format.parse(text).steps) == 5
    read = path_format.parse(text, given=20)
    assert list(read.steps[:20]) == steps[:20] and len(read.steps) == 21
    own = path_format.parse_behind(steps[:3], "".join(path_format.pieces(steps, "R.")[3:])).steps
    assert len(own) == 2 and "\n".join(own) == "\n".join(steps[3:])
    path_format.check(steps, "R.")  # a reference path is never merged


def test_a_free_reply_is_the_whole_text():
    """A record's reply may be the last piece or everything: the turn is the same, and so is what
    is read, which a record made of it can hold."""
    free = make_format("free")
    whole = "A.\n\nB.\n\nC."
    for reply in ("C.", whole):
        free.check(("A.", "B."), reply)
        assert "".join(free.pieces(("A.", "B."), reply)) == whole
    assert free.parse(whole) == Parsed(("A.", "B."), whole, "ok")


def test_what_is_added_to_a_given_step_is_not_lost():
    """A policy that goes on with the last heading it was given has said that, too."""
    given = [f"{heading}: t" for heading in SSUI[:2]]
    rest = "and more\n" + "\n".join(f"{heading}: u" for heading in SSUI[2:]) + "\nReply: R"
    read = make_format("ssui").parse_behind(given, rest)
    assert read.steps == ("and more", *(f"{heading}: u" for heading in SSUI[2:]))
    assert (read.reply, read.status) == ("R", "ok")


@pytest.mark.parametrize("name", FORMATS)
def test_settings_are_json_and_make_the_format_again(name):
    """What trees and provenance hold of a format is plain, and enough to read them again."""
    made = make_format(name, split="line", max_steps=7, markers=("[a]", "[b]"), strict=True)
    stored = json.loads(json.dumps(made.settings()))
    assert stored == made.settings()
    assert make_format(**stored).options == made.options


def test_who_opened_the_thinking():
    """auto looks at the end of the prompt; the setting overrules it; no opening, never opened."""
    prompt = "<|im_start|>assistant\n<think>\n"
    assert make_format("think").opened_by(prompt)
    assert not make_format("think").opened_by("a <think> in the question\nassistant\n")
    assert make_format("think", open="prompt").opened_by("assistant\n")
    assert not make_format("think", open="policy").opened_by(prompt)
    assert not make_format("lines", open="prompt").opened_by(prompt)


@pytest.mark.parametrize("split", ["paragraph", "line", "sentence"])
@pytest.mark.parametrize("name", FORMATS)
def test_instructions_hold_the_question_once(name, split):
    """A policy is told in a few words; the question has one place, braces no other meaning."""
    made = FORMATS[name](FormatOptions(split=split))
    assert made.instruction.count("{question}") == 1 == made.instruction.count("{")
    assert 40 < len(made.instruction) < 500


# format, options, steps, reply, what the message must name
REFUSED = [
    ("lines", {}, ("a\nb",), "r", r"reference.steps\[0\].*one line"),
    ("lines", {}, ("a", "**Answer:** b"), "r", r"reference.steps\[1\]"),
    ("lines", {}, ("```", "b"), "r", r"reference.steps\[0\]"),
    ("lines", {"strict": True}, ("a", "Reply: b"), "r", r"reference.steps\[1\]"),
    ("lines", {"strict": True}, ("a\nb",), "r", r"reference.steps\[0\]"),
    ("think", {}, ("a\n\nb",), "r", r"reference.steps\[0\].*empty line"),
    ("think", {"split": "line"}, ("a\nb",), "r", r"reference.steps\[0\]"),
    ("think", {"split": "sentence"}, ("One. Two.",), "r", r"reference.steps\[0\]"),
    ("think", {}, ("a </think> b",), "r", r"reference.steps\[0\].*tags"),
    ("think", {}, ("a",), "<answer>r</answer>", "reference.reply"),
    ("think", {}, ("a",), "r <think> s", "reference path"),
    ("ssui", {}, ("a", "b"), "r", r"reference.steps\[0\].*Analyze Visual Context"),
    ("llava_cot", {}, ("a", "b"), "r", "three steps"),
    ("llava_cot", {}, ("a", "b", "c", "d"), "r", r"reference.steps\[3\]"),
    ("llava_cot", {}, ("a", "b</CAPTION>c", "c"), "r", r"reference.steps\[1\]"),
    ("mulberry", {}, ("a", "b"), "r", "three steps"),
    ("mulberry", {}, ("a", "b", "c\nStep 2: d"), "r", r"reference.steps\[2\]"),
    ("free", {}, ("a",), "b\n\nc", "reply"),
]


@pytest.mark.parametrize("name, options, steps, reply, named", REFUSED)
def test_a_path_that_cannot_be_written_is_refused(name, options, steps, reply, named):
    """What would be read back as another path is named with the reason, on one line."""
    with pytest.raises(ValueError, match=rf"{named}") as caught:
        make_format(name, **options).check(steps, reply)
    assert "\n" not in str(caught.value) and f"format.kind={name}" in str(caught.value)
