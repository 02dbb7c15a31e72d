"""Answers of a stage: whole and of the right form, or they say nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srpo_jax.data_pipelines.construct.answers import Part, answer_schema, layout, read_answer

PARTS = (
    Part("said", "text", "what", words=3),
    Part("maybe", "text", "what", words=3, may_be_empty=True),
    Part("steps", "list", "them", words=3, least=2, most=3),
    Part("verdict", "labels", labels={"safe": "so", "unsafe": "else"}),
    Part("mark", "grade", "how", most=10),
)
GOOD = {"said": " a b ", "maybe": "", "steps": ["x", "y"], "verdict": "safe", "mark": 7}
WRONG = [
    ({"said": ""}, "said is empty"),
    ({"said": 3}, "said is no text"),
    ({"said": "a " * 7}, "said has 7 words, the limit is 6"),
    ({"said": "\ud800"}, "half a surrogate"),
    ({"steps": ["x"]}, "steps is no list of 2 to 3"),
    ({"steps": ["x"] * 4}, "steps is no list of 2 to 3"),
    ({"steps": ["x", "y\nz"]}, "steps[1] has more than one line"),
    ({"steps": ["x", ""]}, "steps[1] is empty"),
    ({"steps": "xy"}, "steps is no list"),
    ({"verdict": "Safe"}, "verdict is none of safe, unsafe"),
    ({"verdict": ["safe"]}, "verdict is none of"),
    ({"mark": 11}, "mark is no number from 0 to 10"),
    ({"mark": True}, "mark is no number"),
    ({"more": 1}, "must have exactly the keys"),
]


def test_a_good_answer():
    """Texts come without white space around them; what is asked for names every key and label."""
    assert read_answer(PARTS, GOOD) == {**GOOD, "said": "a b"}
    said, schema = layout(PARTS), answer_schema(PARTS)
    assert all(f'"{part.key}"' in said for part in PARTS) and '"unsafe": else' in said
    assert schema["required"] == list(GOOD) and not schema["additionalProperties"]


@pytest.mark.parametrize("change, said", WRONG, ids=[said for _, said in WRONG])
def test_what_is_wrong_is_said(change, said):
    with pytest.raises(ValueError) as error:
        read_answer(PARTS, {**GOOD, **change})
    assert said in str(error.value)


VALUES = st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=5), max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*GOOD, "more"]), VALUES, max_size=3))
def test_whatever_a_model_answers_it_is_read_or_refused(change):
    """Never another exception, and what is read can be written."""
    try:
        found = read_answer(PARTS, {**GOOD, **change})
    except ValueError:
        return
    assert json.dumps(found).encode() and set(found) == set(GOOD)
