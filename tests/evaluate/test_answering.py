"""How questions are answered: several answers, each its own draw, and texts that begin them."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.errors import UserError
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.evaluate.prefixes import read_bank
from tests.support.small_world import RecitingEngine, write_world


@pytest.fixture
def config(tmp_path):
    (tmp_path / "world").mkdir()
    config = write_world(tmp_path / "world")
    with config.unlocked():
        config.eval.samples, config.eval.temperature = 3, 1.5
    return config


def said(folder):
    """{id: the tokens of its answers}."""
    shards = read_answers(folder)[1]
    return {t["id"]: [b["tokens"] for b in t["branches"]] for s in shards for t in read_shard(s)}


def test_an_answer_depends_on_its_question_number_and_seed_alone(config, tmp_path):
    """Not on how many are asked, nor on the questions beside it, nor on the batch; another seed is
    another draw, and answers.json says which it was.
    """
    three = said(evaluate(config, tmp_path, "x"))
    assert all(len({tuple(tokens) for tokens in own}) == 3 for own in three.values())
    with config.unlocked():
        config.eval.samples, config.eval.num_questions, config.eval.batch = 2, 2, 1
    folder = evaluate(config, tmp_path, "y")
    two = said(folder)
    assert len(two) == 2 and all(own == three[name][:2] for name, own in two.items())
    assert read_answers(folder)[0]["decoding"]["samples"] == 2
    with config.unlocked():
        config.seed = 1
    other = said(evaluate(config, tmp_path, "y"))
    assert not any(own == three[name][:2] for name, own in other.items())


def test_a_forced_start_belongs_to_the_answer(config, tmp_path, monkeypatch):
    """It is prefilled, and stands in front of what the policy adds, which is read with it."""
    engines = []

    class Noted(RecitingEngine):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            engines.append(self)

    monkeypatch.setattr(evaluation, "Engine", Noted)
    with config.unlocked():
        config.eval.forced_prefix = "plans"
    folder = evaluate(config, tmp_path, "x")
    about, shards = read_answers(folder)
    text = read_bank()["plans"]
    assert about["decoding"]["forced_prefix"] == text
    trees = [tree for shard in shards for tree in read_shard(shard)]
    answers = [branch for tree in trees for branch in tree["branches"]]
    assert len(answers) == 15 and all(b["text"].startswith(text) for b in answers)
    assert {b["reply_text"] for b in answers if b["finished"]} <= {"Yes.", "No.", "no steps.", None}
    request = engines[0].requests[0]
    assert request.starts == (len(request.path),) * 3 and len(request.path) > 1


def test_settings_that_mean_nothing_are_refused(config, tmp_path):
    """Before anything is loaded."""
    with config.unlocked():
        config.eval.temperature = 0.0
    with pytest.raises(UserError, match="3 answers to a question at temperature 0 are the same"):
        evaluate(config, tmp_path, "x")
    with config.unlocked():
        config.eval.temperature, config.eval.forced_prefix = 1.0, "agree"
    with pytest.raises(UserError, match="'agree' does not exist; .*did you mean agrees?"):
        evaluate(config, tmp_path, "x")
    assert not (tmp_path / "eval").exists()
