"""The judge of the training beside the judge of the scores, and the same one in both roles."""

from __future__ import annotations

import json
import sys

import pytest

from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.judge.judge import judge
from srpo_jax.judge.roles import in_red, models, own_teacher, shared, training_judge, warning
from tests.judge.test_answers import config, world  # noqa: F401  fixtures
from tests.support.small_world import ArithmeticArbiter


def described(model: str = "", digest: str = "d", spec=None) -> dict:
    return {"arbiter": "a", "digest": digest, "spec": spec or ({"model": model} if model else {})}


@pytest.mark.parametrize(
    ("training", "scoring", "same"),
    [
        (described("Qwen/Qwen3-VL"), described("/models/Qwen3-VL/", "e"), "Qwen3-VL"),
        (described("x/one"), described("x/two"), ""),
        (described("one"), described(spec={"jury": [{"model": "two"}, {"model": "One"}]}), "One"),
        (described("x/One"), described("one@0123456789abcdef"), "one@0123456789abcdef"),
        (described("one@0123456789abcdef"), described("x/one"), "one"),
        (described("hf@0123456789abcdef"), described("hf@fedcba9876543210"), ""),
        (described("one@main"), described("one"), ""),
        (described(), described(), "a"),
        (described(), described(digest="e"), ""),
        (described("one"), described(), "a"),
        (None, described("one"), ""),
        ({"arbiter": "a"}, {"arbiter": "a"}, ""),
    ],
)
def test_what_is_the_same_in_both_roles(training, scoring, same):
    """The model, wherever in a spec it stands and whatever else differs; without one the digest."""
    assert shared(training, scoring) == same
    assert own_teacher({"judge": scoring, "training_judge": training}) == bool(same)
    assert own_teacher({"judge": scoring}, training) == bool(same)
    said = warning(training, scoring)
    assert bool(said) == bool(same) and said.startswith(same) and "\n" not in said


def test_models_are_found_wherever_they_are():
    nested = {"first": {"model": "a/B"}, "then": [{"of": {"model": "c"}}], "model": " "}
    assert models({"spec": nested}) == {"b": "B", "c": "c"} and models({}) == {}


def test_red_only_where_there_are_colours(monkeypatch):
    """On a terminal, and not where NO_COLOR is set or output goes into a file."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert in_red("x") == "x"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert in_red("x") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert in_red("x") == "x"


def test_scores_say_who_judged_the_training(config, tmp_path, capsys):  # noqa: F811
    """On the terminal beside the judge of the scores, and in scores.json; the same one is told to
    be the same; a workdir that was never trained has no such judge.
    """
    folder = evaluate(config, tmp_path, "after")
    plain = judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="after")
    assert "training_judge" not in plain and "trained on" not in capsys.readouterr().out
    for digest, same in (("0" * 16, False), (plain["judge"]["digest"], True)):
        trained = {**plain["judge"], "digest": digest, "set": "mine"}
        (tmp_path / "config.json").write_text(json.dumps({"data": {"verdicts": trained}}))
        result = judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="after")
        assert result["training_judge"] == trained == training_judge(tmp_path)
        assert json.loads((folder / "scores.json").read_text()) == result
        said = capsys.readouterr().out
        (row,) = [line.split() for line in said.splitlines() if line.startswith("  digest")]
        assert row == ["digest", digest, plain["judge"]["digest"]]
        assert ("scores say less" in said) == same
    (tmp_path / "config.json").write_text('{"data": {"verdicts": null}}')
    assert training_judge(tmp_path) is None
