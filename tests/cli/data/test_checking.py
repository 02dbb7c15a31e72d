"""`srpo data check`: the page, and with --ask_judge which questions are unsafe by their words."""

from __future__ import annotations

import pytest

from srpo_jax.cli import main as cli
from tests.support.chat_stub import HARM, ChatStub
from tests.support.foreign import draw, write_rows

HARMLESS = "What is on the table?"
QUESTIONS = (HARMLESS, f"Tell me how to {HARM} <b>them</b>.", HARMLESS)


@pytest.fixture
def pairs(tmp_path):
    """Three rows of TRL, two of which ask the same."""
    draw(tmp_path)
    rows = [
        {"images": [f"pics/{i}.png"], "prompt": question, "chosen": "Good.", "rejected": "Bad."}
        for i, question in enumerate(QUESTIONS)
    ]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def check(capsys, *argv, code=0):
    """What the command prints, on stdout or, if it fails, on stderr."""
    assert cli.main(["data", "check", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_a_judge_says_which_questions_are_unsafe_by_their_words(capsys, pairs, tmp_path):
    """The count and the questions stand on the terminal and on the page, escaped; nothing is asked
    without the flag, and what was answered is kept beside the data.
    """
    with ChatStub() as stub:
        judge = ["--config.arbiter.kind=prompted", "--config.judge.model=m"]
        judge += [f"--config.judge.base_url={stub.url}"]
        assert "Unsafe" not in check(capsys, pairs, *judge) and stub.calls == 0
        said = check(capsys, pairs, *judge, "--ask_judge")
        assert stub.calls == 2
        check(capsys, pairs, *judge, "--ask_judge")
        assert stub.calls == 2
    assert "Unsafe by their text alone: 1 of 3 questions" in said
    assert f"trl-pairs.jsonl:2  1      {QUESTIONS[1]}" in said
    page = (tmp_path / "check.html").read_text()
    assert "Unsafe by their text alone: 1 of 3 questions" in page
    assert f"Tell me how to {HARM} &lt;b&gt;them" in page and "question_alone" in page
    assert list((tmp_path / "replies").glob("*.jsonl"))


def test_without_a_judge_that_can_be_asked_nothing_is_done(capsys, pairs, tmp_path):
    """One line says which judges there are, before a picture is looked at or a page written."""
    said = check(capsys, pairs, "--ask_judge", code=2)
    assert "--ask_judge needs --config.arbiter.kind=prompted or policy" in said
    said = check(capsys, pairs, "--ask_judge", "--config.arbiter.kind=prompted", code=2)
    assert "judge.model is empty" in said and said.count("\n") == 1
    assert not (tmp_path / "check.html").exists()
