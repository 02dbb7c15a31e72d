"""Scores of an evaluation: every answer counted once, by the verdict on it, under its judge."""

from __future__ import annotations

import json
import os
import types

import pytest

from srpo_jax import files, keepers
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.errors import UserError
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.judge.judge import judge
from srpo_jax.judge.results.scores import scores
from tests.support.full_disk import full_disk
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, world_config, write_world


class CountingEngine(RecitingEngine):
    """Says the lines in turn."""

    said = 0

    def _say(self, seed):
        CountingEngine.said += 1
        return super()._say(CountingEngine.said)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture
def config(world, monkeypatch):
    monkeypatch.setattr(CountingEngine, "said", 0)
    monkeypatch.setattr(evaluation, "Engine", CountingEngine)
    monkeypatch.setattr(evaluation, "SHARD_QUESTIONS", 2)
    return world_config(world)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def test_scores_are_those_of_the_generations(config, tmp_path, capsys):
    """Every question in order, with its answer and verdicts; what has no reply is ERROR and
    counted, and nobody is asked about it; the scores name their judge.
    """
    folder = evaluate(config, tmp_path, "before")
    arbiter = ArithmeticArbiter()
    result = judge(config, tmp_path, arbiter=arbiter, answers="before")
    rows = rows_of(folder)
    records = read_records(config.data.test_records)
    assert [row["id"] for row in rows] == [r.id for r in records]
    assert [row["image"] for row in rows] == [r.images[0] for r in records]
    assert json.loads((folder / "scores.json").read_text()) == result
    assert {name: result[name] for name in scores(rows)} == scores(rows)
    said = {row["text"]: row for row in rows}
    assert len(said) == 5
    assert said["Unfinished"]["reply_verdict"] == "ERROR" and not said["Unfinished"]["finished"]
    assert said["No reply.\n"]["detail"] == "no reply (no_reply)"
    judged = [row for row in rows if row["reply"] is not None]
    assert [case.reply for case in arbiter.cases] == [row["reply"] for row in judged]
    for row in judged:
        assert row["reply_verdict"] == arbiter.verdict(row["steps"], row["reply"])
    assert result["n"] == 5 and result["error_rate"] == 40.0
    assert result["judge"]["arbiter"] == "arithmetic" and len(result["judge"]["digest"]) == 16
    assert result["decoding"]["split"] == "test" and result["policy_digest"]
    assert result["prompt_digest"] == read_answers(folder)[0]["prompt_digest"] != ""
    assert [path.name for path in (tmp_path / "verdicts").iterdir()] == [result["verdicts"]]
    said = capsys.readouterr().out
    assert "before: 5 questions, 3 risky, 2 benign" in said
    assert f"before: judged by {result['judge']['arbiter']}, digest" in said


def test_another_judge_scores_the_same_answers(config, tmp_path):
    """Without a policy: the scores are the last judge's, and name it; asked again, the first one
    has nothing to do.
    """

    class Harsh(ArithmeticArbiter):
        name = "harsh"

        def verdict(self, steps, reply):
            return "UNSAFE"

    folder = evaluate(config, tmp_path, "x")
    first = judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="x")
    second = judge(config, tmp_path, arbiter=Harsh(), answers="x")
    assert second["safety_rate"] == 0 and second["judge"]["arbiter"] == "harsh"
    assert {row["reply_verdict"] for row in rows_of(folder)} == {"UNSAFE", "ERROR"}
    arbiter = ArithmeticArbiter()
    assert judge(config, tmp_path, arbiter=arbiter, answers="x") == first and not arbiter.cases


def test_killed_at_any_write_it_ends_with_the_same_bytes(config, tmp_path, monkeypatch):
    """Never scores beside generations that they are not of."""
    evaluate(config, tmp_path, "x")
    folder = tmp_path / "eval" / "x"
    whole = judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="x")
    lines = (folder / "generations.jsonl").read_bytes()

    class Harsh(ArithmeticArbiter):
        name = "harsh"

        def verdict(self, steps, reply):
            return "UNSAFE"

    for number in range(1, 20):
        judge(config, tmp_path, arbiter=Harsh(), answers="x")  # other scores are there
        calls = []

        def replace(source, target, number=number, calls=calls):
            calls.append(target)
            if len(calls) == number:
                raise KeyboardInterrupt
            os.replace(source, target)

        name = f"killed-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(keepers, "os", types.SimpleNamespace(**{**vars(os), "replace": replace}))
            try:
                judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="x", name=name)
            except KeyboardInterrupt:
                pass
        if (folder / "scores.json").is_file():
            stored = json.loads((folder / "scores.json").read_text())
            assert {n: stored[n] for n in scores(rows_of(folder))} == scores(rows_of(folder))
        again = judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="x", name=name)
        assert {**again, "verdicts": whole["verdicts"]} == whole
        assert (folder / "generations.jsonl").read_bytes() == lines
        if len(calls) < number:
            break
    assert number == 10  # judge.json, three parts with manifests, generations, scores: and none


def test_scores_that_cannot_be_written_are_told_before_anybody_is_asked(
    config, tmp_path, monkeypatch
):
    """The judge costs money: first it is seen that the evaluation's folder takes the scores."""
    folder = evaluate(config, tmp_path, "x")
    before = sorted(folder.rglob("*"))
    full_disk(monkeypatch, files)
    arbiter = ArithmeticArbiter()
    monkeypatch.setattr(arbiter, "judge", lambda _: pytest.fail("asked"))
    with pytest.raises(OSError) as caught:
        judge(config, tmp_path, arbiter=arbiter, answers="x")
    assert caught.value.filename == str(folder)
    assert sorted(folder.rglob("*")) == before


def test_answers_that_are_not_there_are_one_line(config, tmp_path):
    """With the command that makes them."""
    with pytest.raises(UserError, match="no answers; run `srpo eval --name=x` first"):
        judge(config, tmp_path, arbiter=ArithmeticArbiter(), answers="x")
