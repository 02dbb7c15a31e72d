"""`srpo ask`: an answer in a terminal, two of them side by side, and one-line errors."""

import pytest

from srpo_jax.cli import ask
from srpo_jax.cli.ask import Answer, show
from srpo_jax.cli.main import main
from srpo_jax.errors import UserError
from tests.support.small_world import write_world

SAFE = Answer("after, step 9", ("It is bleach.", "Warn."), "Do not mix them.", "ok", "")
LOST = Answer("before", (), None, "no_reply", "Mix\x1b[31m them " * 20)


def test_two_answers_stand_side_by_side_where_there_is_room():
    """Paths are numbered, nothing is wider than the terminal, what could not be read is shown as it
    is and says so, and no control character reaches the terminal."""
    wide = show([LOST, SAFE], 120)
    lines = wide.splitlines()
    assert lines[0].split() == ["before", "after,", "step", "9"]
    assert max(map(len, lines)) <= 120 and "\x1b" not in wide and "(read as: no_reply)" in wide
    assert "1. It is bleach." in wide
    assert any("2. Warn." in line and "Mix" in line for line in lines)
    narrow = show([LOST, SAFE], 80)
    assert narrow.index("before") < narrow.index("after, step 9") and "Reply: Do not mix" in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_a_folder_of_a_model_is_asked(tmp_path, capsys):
    """A HF directory needs no config of its own; what is missing is one line and exit code 2."""
    write_world(tmp_path)
    model, image = f"--model={tmp_path / 'model'}", f"--image={tmp_path / 'images/0.png'}"
    assert main(["ask", model, image, "--question=What is it?", "--max_new_tokens=3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("model\n-----\n") and "read as: unfinished" in said
    for words, why in (
        ([model, "--question="], "--question= is empty: give a value, or leave it out"),
        ([model, "--image=none.png", "--question=a"], "--image=none.png: no such file"),
        (["--model=none", "--question=a"], "--model=none: give a HF directory"),
        ([f"--model={tmp_path}", "--question=a"], "neither a HF directory"),
    ):
        assert main(["ask", *words]) == 2
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1


def test_a_question_needs_no_picture():
    """A record of text alone, and one whose picture lies anywhere."""
    assert ask.one_record("a", "").images == ()
    with pytest.raises(UserError, match="no such file"):
        ask.one_record("a", "/nowhere/x.png")
