"""The list of failures: complete, and filtered by what each of them is."""

import json
import re

import pytest

from srpo_jax.runs.report.failures import failure_list, kinds
from srpo_jax.runs.report.page import render
from tests.support.scored import row, write_evaluation

BAD = [
    ("ok", row("ok", "SAFE"), []),
    ("unsafe", row("unsafe", "UNSAFE"), ["unsafe reply"]),
    ("path", {**row("path", "SAFE"), "path_verdict": "UNSAFE"}, ["unsafe path"]),
    ("curt", row("curt", "SAFE", risky=False, effective=False), ["not effective"]),
    ("error", {**row("error", "ERROR"), "status": "no_reply"}, ["not judged", "not read"]),
]
AFTER = [{**found, "category": "a b" if i % 2 else None} for i, (_, found, _) in enumerate(BAD)]


@pytest.mark.parametrize("name, answer, wrong", BAD)
def test_what_is_wrong_has_a_name(name, answer, wrong):
    """Several at once, where there are several."""
    assert kinds(answer) == wrong


def test_an_arbiter_of_replies_alone_makes_no_failures():
    """Where no path was judged, that is nothing wrong."""
    rows = [{**row(f"q{i}", "SAFE"), "path_verdict": "ERROR"} for i in range(3)]
    assert failure_list({"after": rows}, None, [])["items"] == []
    assert failure_list({}, None, []) is None


def options(found, title):
    (each,) = [each for each in found["filters"] if each["title"] == title]
    return dict(each["options"])


def test_every_failure_is_listed_with_what_it_is():
    """Of all evaluations but the one before, which says since when."""
    before = [row("unsafe", "SAFE"), row("path", "UNSAFE")]
    found = failure_list({"before": before, "after": AFTER, "siuo": AFTER[1:2]}, "before", [])
    assert found["answers"] == 6 and len(found["items"]) == 5
    assert options(found, "what is wrong") == {
        **{"unsafe reply": 2, "unsafe path": 1, "not effective": 1},
        **{"not judged": 1, "not read": 1},
    }
    since = {"right before": 2, "wrong before, too": 1, "not asked before": 2}
    assert options(found, "before") == since
    assert options(found, "evaluation") == {"after": 4, "siuo": 1}
    assert options(found, "questions") == {"risky": 4, "harmless": 1}
    assert options(found, "category") == {"a b": 3, "none": 2}


def test_each_button_has_a_rule_that_leaves_its_own(tmp_path):
    """For every button: the rule that its id names hides all but as many as it says."""
    write_evaluation(tmp_path, "before", [row("unsafe", "SAFE")], policy="base")
    write_evaluation(tmp_path, "after", AFTER, policy="trained")
    text = render(tmp_path)
    classes = re.findall(r'<div class="failure( [^"]*)">', text)
    assert len(classes) == 4
    buttons = re.findall(r'id="(f-\d+-\d+)"> [^<]+<small>(\d+)</small>', text)
    assert len(buttons) == 5 + 2 + 2 + 2
    for name, count in buttons:
        rule = f"#failures:has(#{name}:checked) .failure:not(.{name}) {{ display: none; }}"
        assert rule in text
        assert sum(name in own.split() for own in classes) == int(count)


def test_what_is_not_safe_stays_closed_and_escaped(tmp_path):
    """Replies and steps behind a fold that says why; a category with markup stays text."""
    evil = {
        **row("q", "UNSAFE"),
        **{"category": "<b>x", "steps": ["good", "bad"], "reply": "<i>harm", "sample": 2},
        **{"path_verdict": "UNSAFE", "step_verdicts": ["SAFE", "UNSAFE"]},
    }
    write_evaluation(tmp_path, "after", [evil], policy="trained")
    text = render(tmp_path)
    part = text[text.index('id="failures"') :]
    assert "<b>x" not in text and "&lt;i&gt;harm" in part and "answer 3" in part
    assert 'aria-label="step 2: unsafe"' in part and 'aria-label="step 1: safe"' in part
    assert part.index("judged unsafe</summary>") < part.index("&lt;i&gt;harm")
    assert json.dumps(evil) not in text
