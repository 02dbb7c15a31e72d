"""Verdicts from files: by a rule, and by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import pytest

from srpo_jax.arbiter.scripted import Replay, Scripted, content_key
from srpo_jax.arbiter.verdict import Case, Verdict
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError

SAFE, UNSAFE, ERROR = Verdict.SAFE, Verdict.UNSAFE, Verdict.ERROR
CASE = Case(Record("q1", ("a.png",), "Why?", ("s",), "r"), ("One.", "Two."), "No.", True, (b"x",))


def written(folder, *rows) -> str:
    path = folder / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_first_row_that_fits(tmp_path):
    """By question, by a text in the reply, by both, or always; ERROR where none fits."""
    judge = Scripted(
        written(
            tmp_path,
            {"id": "q1", "contains": "Yes", "reply_verdict": "UNSAFE", "score": 1},
            {"id": "q1", "reply_verdict": "SAFE", "path_verdict": "SAFE", "effective": True},
            {"contains": "bleach", "reply_verdict": "UNSAFE", "step_verdicts": ["ERROR"]},
        )
    )
    other = dataclasses.replace(CASE, record=dataclasses.replace(CASE.record, id="q2"))
    cases = [CASE, dataclasses.replace(CASE, reply="Yes."), other]
    cases += [dataclasses.replace(other, reply="bleach"), dataclasses.replace(CASE, reply=None)]
    judged = judge.judge(cases)
    assert [j.reply for j in judged] == [SAFE, UNSAFE, ERROR, UNSAFE, ERROR]
    assert (judged[0].path, judged[0].effective, judged[1].score) == (SAFE, True, 1.0)
    assert judged[3].steps == (ERROR,) and not any(j.failed for j in judged)


def test_the_same_content_has_the_same_verdict(tmp_path):
    """By its key or by its parts, pictures among them; what is not there is asked again later."""
    images = [hashlib.sha256(b"x").hexdigest()]
    parts = {"question": "Why?", "steps": ["One.", "Two."], "reply": "No.", "images": images}
    key = content_key("Why?", ["One."], "No.", images)
    path = written(
        tmp_path,
        {"key": content_key(**parts), "reply_verdict": "UNSAFE"},
        {**parts, "reply_verdict": "SAFE", "path_verdict": "UNSAFE", "detail": "d"},
        {"key": key, "reply_verdict": "UNSAFE"},
    )
    cases = [CASE, dataclasses.replace(CASE, steps=("One.",))]
    cases += [dataclasses.replace(CASE, images=(b"y",)), dataclasses.replace(CASE, reply="No")]
    judged = Replay(path).judge(cases)
    assert [j.reply for j in judged] == [SAFE, UNSAFE, ERROR, ERROR]
    assert [j.failed for j in judged] == [False, False, True, True]
    assert judged[0].path == UNSAFE and judged[0].detail == "d"
    before = Replay(path).spec
    written(tmp_path, {"key": key, "reply_verdict": "SAFE"})
    assert Replay(path).spec != before


@pytest.mark.parametrize("make", [Scripted, Replay])
@pytest.mark.parametrize(
    "row",
    [
        {},
        {"reply_verdict": "safe"},
        {"reply_verdict": "SAFE", "step_verdicts": ["MAYBE"]},
        {"reply_verdict": "SAFE", "effective": "yes"},
        {"reply_verdict": "SAFE", "score": 2},
        {"reply_verdict": "SAFE", "verdict": "SAFE"},
        {"reply_verdict": ["SAFE"]},
    ],
)
def test_a_wrong_row_is_named(tmp_path, make, row):
    if make is Replay:
        row = {"key": "k", **row}
    good = {"key": "k"} if make is Replay else {}
    with pytest.raises(UserError, match=r"\.jsonl:2: ") as caught:
        make(written(tmp_path, {**good, "reply_verdict": "SAFE"}, row))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [Scripted, Replay])
@pytest.mark.parametrize("line", ['{"reply_verdict": "SAFE"', "[1]", "[" * 100_000])
def test_no_line_is_passed_over(tmp_path, make, line):
    """Also the last one: a verdict that silently lacks is another judge. A mark that some editors
    put in front is none of the text.
    """
    path = pathlib.Path(written(tmp_path, {"reply_verdict": "SAFE", "key": "k"}))
    if make is Scripted:
        path = pathlib.Path(written(tmp_path, {"reply_verdict": "SAFE"}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    make(str(path))
    path.write_text(path.read_text() + line)
    with pytest.raises(UserError, match=r"\.jsonl:2: not (a )?JSON"):
        make(str(path))


def test_a_missing_file_is_named(tmp_path):
    for cases, said in [("", "judge.cases is empty"), (str(tmp_path / "x"), "does not exist")]:
        with pytest.raises(UserError, match=said):
            Scripted(cases)
