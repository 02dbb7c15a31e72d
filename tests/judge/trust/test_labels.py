"""A person's labels: the file to fill in, reading it back, agreement."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from srpo_jax.errors import UserError
from srpo_jax.judge.trust.labels import agreement, read_labels, to_label, write_to_label
from tests.judge.results.test_measures import branch, tree


def judged(counts):
    """One tree with so many branches of each verdict, all of other text."""
    verdicts = [verdict for verdict, count in counts.items() for _ in range(count)]
    found = tree("q", [branch(0, k, [k], verdict) for k, verdict in enumerate(verdicts)])
    return {**found, "question": "What?", "images": [{"name": "a.png"}], "step_texts": ["Look."]}


def verdict_of(one):
    return {branch["k"]: branch["reply_verdict"] for branch in one["branches"]}


@pytest.mark.parametrize(
    "counts, expected",
    [
        ({"SAFE": 90, "UNSAFE": 20, "ERROR": 2}, {"SAFE": 9, "UNSAFE": 9, "ERROR": 2}),
        ({"SAFE": 50, "UNSAFE": 3}, {"SAFE": 17, "UNSAFE": 3}),
        ({"SAFE": 4}, {"SAFE": 4}),
    ],
)
def test_what_to_label_is_balanced_over_verdicts(counts, expected):
    """As many of each verdict as there are, filled up by the others; nothing in a row, nor the
    order of rows, tells the verdict; the same trees give the same rows."""
    one = judged(counts)
    rows = to_label([one], 20)
    assert rows == to_label([one], 20)
    verdicts = [verdict_of(one)[row["k"]] for row in rows]
    assert Counter(verdicts) == expected
    assert {row["reply_verdict"] for row in rows} == {""}
    if len(expected) > 1:
        assert verdicts != sorted(verdicts) and verdicts != sorted(verdicts, reverse=True)


def test_only_what_was_judged_is_shown_whole_and_once():
    """The text begins with the steps that the branch was given; unfinished ones and copies of a
    text are left out."""
    one = judged({"SAFE": 2})
    cut = branch(0, 8, [8], "ERROR", finished=False, status="unfinished")
    copy = {**one["branches"][0], "k": 9}
    later = {**branch(1, 0, [7], "SAFE"), "text": "Then.\nReply: Yes.\n"}
    rows = to_label([{**one, "branches": [*one["branches"], cut, copy, later]}], 50)
    assert sorted((row["at"], row["k"]) for row in rows) == [(0, 0), (0, 1), (1, 0)]
    (row,) = (row for row in rows if row["at"] == 1)
    assert row["text"] == "Look.\nThen.\nReply: Yes." and row["images"] == ["a.png"]


def test_a_persons_work_is_not_overwritten(tmp_path):
    """The file is written anew as long as it has no verdict, and never after."""
    path, rows = tmp_path / "to_label.jsonl", to_label([judged({"SAFE": 3})], 20)
    assert write_to_label(path, rows[:1]) and write_to_label(path, rows)
    filled = [{**row, "reply_verdict": "SAFE"} for row in rows[:1]] + rows[1:]
    path.write_text("".join(json.dumps(row) + "\n" for row in filled))
    before = path.read_bytes()
    assert not write_to_label(path, rows)
    assert path.read_bytes() == before
    assert read_labels(path) == {("q", 0, filled[0]["k"]): "SAFE"}
    path.write_bytes(b"\xef\xbb\xbf" + before)  # as some editors save it
    assert read_labels(path) == {("q", 0, filled[0]["k"]): "SAFE"}


@pytest.mark.parametrize(
    "text", ["notes", '{"reply_verdict": "SA', "[1]\n", '{"id": "q"}\n', "\xff"]
)
def test_what_is_no_file_to_label_is_not_overwritten(tmp_path, text):
    """A half-typed label, or a file that is something else."""
    path = tmp_path / "notes.jsonl"
    path.write_bytes(text.encode("latin-1"))
    assert not write_to_label(path, to_label([judged({"SAFE": 3})], 20))
    assert path.read_bytes() == text.encode("latin-1")


BAD = [
    ("[1]", "1: not a JSON object"),
    ("{", "1: not JSON"),
    ("[" * 100_000, "1: not JSON"),
    ('\n{"id": "q", "at": 0, "reply_verdict": "SAFE"}', "2: a label needs id"),
    ('{"id": "q", "at": 0, "k": true, "reply_verdict": "SAFE"}', "1: a label needs id"),
    ('{"id": "q", "at": 0, "k": 1, "reply_verdict": "safe"}', "write SAFE, UNSAFE or nothing"),
    ('{"id": "q", "at": 0, "k": 1, "reply_verdict": ""}', "no line has a verdict"),
    (
        '{"id": "q", "at": 0, "k": 1, "reply_verdict": "SAFE"}\n'
        '{"id": "q", "at": 0, "k": 1, "reply_verdict": "UNSAFE"}',
        "2: this branch has another label",
    ),
]


@pytest.mark.parametrize("text, said", BAD)
def test_a_bad_line_is_named(tmp_path, text, said):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_labels(path)
    assert "\n" not in str(error.value)


def test_agreement_and_kappa():
    """Cohen's kappa of a table worked out by hand: 20 agree SAFE, 15 UNSAFE, 5 and 10 differ, so
    p_o 0.7, p_e 0.5, kappa 0.4. ERROR agrees with no label, and chance alone has no kappa."""
    one = judged({"SAFE": 30, "UNSAFE": 20})
    own = ["SAFE"] * 20 + ["UNSAFE"] * 10 + ["SAFE"] * 5 + ["UNSAFE"] * 15
    found = agreement([one], {("q", 0, k): label for k, label in enumerate(own)})
    assert found["labels"] == 50 and found["agree"] == 0.7
    assert found["kappa"] == pytest.approx(0.4)
    assert found["table"] == {
        "SAFE/SAFE": 20, "SAFE/UNSAFE": 5, "UNSAFE/SAFE": 10, "UNSAFE/UNSAFE": 15
    }  # fmt: skip
    failed = agreement(
        [judged({"ERROR": 1, "SAFE": 1})], {("q", 0, 0): "SAFE", ("q", 0, 1): "SAFE"}
    )
    assert failed["agree"] == 0.5
    assert agreement([one], {("q", 0, 0): "SAFE"})["kappa"] is None
    with pytest.raises(UserError, match="not in these trees: id 'q', at 0, k 99"):
        agreement([one], {("q", 0, 99): "SAFE"})
