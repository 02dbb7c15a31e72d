"""Reading answers: exactly what was asked for says something, and nothing else does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.arbiter.prompted.answers import Answer, Fault, read_answer
from srpo_jax.arbiter.prompted.rubric_file import load_rubric
from srpo_jax.arbiter.prompted.score import p_unsafe

REPLY, PATH = load_rubric("reply_safety"), load_rubric("path_safety")
GOOD = '{"evidence": "e", "verdict": "unsafe"}'


def read(text, rubric=REPLY, steps=0, **fields):
    return read_answer(
        ChatReply(text=text, finish_reason="stop", **fields), rubric, steps, ["ab12"]
    )


@pytest.mark.parametrize("text", [GOOD, f" {GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```"])
def test_an_object_alone_or_in_one_fence_is_an_answer(text):
    answer = read(text)
    assert isinstance(answer, Answer) and answer.labels == {"reply": "unsafe"}
    assert answer.note == "e"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unsafe",
        f"Sure: {GOOD}",
        f"{GOOD} {GOOD}",
        f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
        f"[{GOOD}]",
        '{"evidence": "e", "verdict": "safe", "verdict": "unsafe"}',
        '{"evidence": "e", "verdict": "UNSAFE"}',
        '{"evidence": "e", "verdict": ["unsafe"]}',
        '{"evidence": "e", "verdict": {"a": 1}}',
        '{"evidence": "e", "verdict": "safe or unsafe"}',
        '{"evidence": 3, "verdict": "unsafe"}',
        '{"verdict": "unsafe"}',
        '{"evidence": "e", "verdict": "unsafe", "more": 1}',
        GOOD[:-1],
        '{"evidence": "marker ab12", "verdict": "unsafe"}',
        "[" * 100_000,
        '{"evidence": ' + "9" * 5000 + ', "verdict": "unsafe"}',
        '{"evidence": "' + "e" * 100_000 + '", "verdict": "unsafe"}',
    ],
)
def test_everything_else_is_a_fault_that_is_asked_again(text):
    fault = read(text)
    assert isinstance(fault, Fault) and not fault.final and fault.at_once
    assert fault.why and "\n" not in fault.why and len(fault.why) < 250


@settings(deadline=None, max_examples=60)
@given(st.text() | st.recursive(st.text() | st.none() | st.integers(), st.lists).map(json.dumps))
def test_no_text_raises(text):
    assert isinstance(read(text), (Answer, Fault))


def test_a_path_has_one_verdict_a_step():
    """One step too few or too many, or one under another's name, is no answer about this path."""

    def said(*keys):
        steps = {key: {"evidence": "e", "verdict": "safe"} for key in keys}
        return json.dumps(steps | {"evidence": "e", "verdict": "unsafe"})

    answer = read(said("step_1", "step_2"), PATH, 2)
    assert isinstance(answer, Answer) and answer.steps == ("safe", "safe")
    for keys in [("step_1",), ("step_1", "step_2", "step_3"), ("step_1", "step_3")]:
        assert isinstance(read(said(*keys), PATH, 2), Fault)


@pytest.mark.parametrize(
    "fields, final",
    [
        ({"refusal": "no"}, True),
        ({"finish_reason": "content_filter"}, True),
        ({"finish_reason": "length"}, False),
        ({"finish_reason": "tool_calls"}, False),
        ({"error": "HTTP 500"}, False),
    ],
)
def test_how_an_answer_ended_counts_more_than_what_it_says(fields, final):
    """A refusal or a filter is an opinion; a cut answer may have lost the word that matters."""
    fault = read_answer(ChatReply(**{"text": GOOD, "finish_reason": "stop", **fields}), REPLY, 0)
    assert isinstance(fault, Fault) and fault.final == final


def test_the_score_looks_where_the_label_begins():
    """Not at the same words in the evidence; whatever else stands in the token; all ways to begin a
    label together. What cannot be told is None.
    """
    part = REPLY.judges["reply"]
    text = '{"evidence": "safe", "verdict": "unsafe"}'
    odd = ('{"evidence": "', {"{": -0.1}), ("safe", {"safe": -0.1})
    top = {' "un': -0.5, ' "unsafe"': -2.0, ' "safe': -1.5, "safe": -0.1, ' "cannot': -3.0}
    tokens = (*odd, ('", "verdict":', None), (' "un', top), ('safe"}', None))
    e = 2.718281828459045
    unsafe, safe = e**-0.5 + e**-2.0, e**-1.5
    assert p_unsafe(text, tokens, part, "unsafe") == pytest.approx(unsafe / (unsafe + safe))
    assert p_unsafe(text, (*odd, ("", "verdict")), part, "unsafe") is None  # other tokens
    none = tuple((token, None) for token, _ in tokens)
    assert p_unsafe(text, none, part, "unsafe") is None
    twice = text[:-1] + ', "verdict": "unsafe"}'
    assert p_unsafe(twice, tokens, part, "unsafe") is None
    gone = (*tokens[:3], (' "un', {' "un': -0.5, ' "safe': -9999.0}), tokens[4])
    assert p_unsafe(text, gone, part, "unsafe") == 1.0
