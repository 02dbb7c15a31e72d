"""Evaluation end to end on a tiny policy: files, greedy answers, verdicts of path and reply."""

import json

import pytest

from srpo_jax.data_pipelines.records import read_records
from srpo_jax.evaluate import evaluate as run
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.judge.scores import scores
from srpo_jax.models.hf.load import load_params, policy_digest
from srpo_jax.models.registry import load_model_config
from tests.support.small_world import ArithmeticArbiter, write_world


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "make_arbiter", lambda kind: ArithmeticArbiter())
    (tmp_path / "world").mkdir()
    return write_world(tmp_path / "world")


def test_generations_and_scores(config, tmp_path, capsys):
    """Every question once, in order; scores.json is the scores of generations.jsonl; parameters
    given directly answer as the folder they come from; a second run replaces the first."""
    result = evaluate(config, tmp_path, "before")
    folder = tmp_path / "eval/before"
    lines = (folder / "generations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    records = read_records(config.data.test_records)
    assert [row["id"] for row in rows] == [r.id for r in records]
    assert [row["image"] for row in rows] == [r.images[0] for r in records]
    assert json.loads((folder / "scores.json").read_text()) == result
    assert {name: result[name] for name in scores(rows)} == scores(rows)
    assert result["policy_digest"] == policy_digest(config.model.path)
    assert result["decoding"]["max_new_tokens"] == 6 and result["decoding"]["split"] == "test"
    assert "5 questions, 3 risky, 2 benign" in capsys.readouterr().out

    params = load_params(config.model.path, load_model_config(config.model.path))
    with config.unlocked():
        config.eval.num_questions = 2
    again = evaluate(config, tmp_path, "before", params=params)
    assert again["n"] == 2 and again["policy_digest"] != result["policy_digest"]
    now = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    assert now == [row for row in rows if row["id"] in {r["id"] for r in now}]
    assert sorted(p.name for p in folder.iterdir()) == ["generations.jsonl", "scores.json"]
