"""Answers on a tiny policy: every question once, greedy, whole or not there."""

from dataclasses import replace

import pytest

from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.prompt import SAFETY
from srpo_jax.data_pipelines.records import CATEGORIES, Record, read_records, write_records
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.errors import UserError
from srpo_jax.evaluate import evaluate as run
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.files import read_json
from srpo_jax.inference.engine import lowering
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.models.registry import load_model_config
from srpo_jax.owners import Owner
from srpo_jax.runs.looks import FILE
from tests.support.small_world import RecitingEngine, write_world


@pytest.fixture
def config(tmp_path):
    (tmp_path / "world").mkdir()
    return write_world(tmp_path / "world")


def answers(folder):
    """(what answers.json says, the tree records)."""
    about, shards = read_answers(folder)
    return about, [tree for shard in shards for tree in read_shard(shard)]


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_place_that_cannot_be_written_is_told_first(config, tmp_path, monkeypatch):
    """Before the policy is loaded, let alone asked."""
    monkeypatch.setattr(run, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "eval").write_text("a file")
    with pytest.raises(UserError, match="eval is a file"):
        evaluate(config, tmp_path, "x")


def test_looks_at_test_questions_are_counted(config, tmp_path, monkeypatch, capsys):
    """Whoever evaluates: once a policy, and not where the questions are others."""
    monkeypatch.setattr(run, "Engine", RecitingEngine)
    evaluate(config, tmp_path, "before")
    evaluate(config, tmp_path, "again")
    config.eval.split = "train"
    evaluate(config, tmp_path, "train")
    (look,) = read_json(tmp_path / FILE)["looks"]
    assert look["evaluation"] == "before"
    said = capsys.readouterr().out
    assert said.count("test questions, look 1 of") == said.count("test questions") == 2


def test_a_name_is_answered_by_one(config, tmp_path, monkeypatch):
    """A second `srpo eval` of the name is told before it loads the policy."""
    monkeypatch.setattr(run, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    folder = tmp_path / "eval" / "x"
    folder.mkdir(parents=True)
    with Owner(folder / ".owner", "x", "answered", ""):
        with pytest.raises(UserError, match="eval/x is being answered by process .*another --name"):
            evaluate(config, tmp_path, "x")
    assert list(folder.iterdir()) == []


def test_every_question_is_answered_once(config, tmp_path, capsys, monkeypatch):
    """In the records' order, with the text of the question's own reference path; parameters given
    directly answer as the folder they come from; a second evaluation of the name replaces the
    first, with the scores that somebody made of it.
    """
    monkeypatch.setattr(lowering, "_compiled", {})  # nothing was compiled before
    folder = evaluate(config, tmp_path, "before")
    assert folder == tmp_path / "eval/before"
    about, trees = answers(folder)
    records = read_records(config.data.test_records)
    assert [tree["id"] for tree in trees] == [r.id for r in records]
    processor = Processor.from_dir(config.model.path)
    for tree, record in zip(trees, records, strict=True):
        (branch,) = tree["branches"]
        assert (branch["at"], len(branch["tokens"])) == (0, 6) or branch["finished"]
        assert branch["text"] == processor.decode(branch["tokens"])
        assert (tuple(tree["step_texts"]), tree["reply_text"]) == (record.steps, record.reply)
    assert about["policy_digest"] == policy_digest(config.model.path)
    assert about["decoding"]["max_new_tokens"] == 6 and about["decoding"]["split"] == "test"
    said = capsys.readouterr()
    assert "5/5 questions" in said.out and said.err.startswith(
        "sampling (prefill): compiling, which may"
    )
    assert "warning: the scores say little: 5 of 5 answers cannot be read" in said.err

    (folder / "scores.json").write_text("{}")
    params = load_params(config.model.path, load_model_config(config.model.path))
    with config.unlocked():
        config.eval.num_questions = 2
    evaluate(config, tmp_path, "before", params=params)
    other, again = answers(folder)
    assert len(again) == 2 and other["policy_digest"] != about["policy_digest"]
    by_id = {tree["id"]: tree["branches"][0]["tokens"] for tree in trees}
    assert all(tree["branches"][0]["tokens"] == by_id[tree["id"]] for tree in again)
    assert not (folder / "scores.json").exists() and len(list(folder.glob("answers-*"))) == 1


def test_an_interruption_costs_one_shard_at_most(config, tmp_path, monkeypatch):
    """Stopped within the third shard: the answers of before stay what this name means until the new
    ones are complete, and the same command ends with the bytes of one that was not stopped.
    """
    monkeypatch.setattr(run, "SHARD_QUESTIONS", 2)
    asked = []

    class Reciting(RecitingEngine):
        stop_at = 0

        def _answer(self, request):
            asked.append(request.name)
            if len(asked) == self.stop_at:
                raise KeyboardInterrupt
            return super()._answer(request)

    monkeypatch.setattr(run, "Engine", Reciting)
    evaluate(config, tmp_path / "whole", "x")
    assert len(asked) == 5
    folder = tmp_path / "part" / "eval" / "x"
    with config.unlocked():
        config.eval.num_questions = 1
    evaluate(config, tmp_path / "part", "x")
    earlier = answers(folder)
    with config.unlocked():
        config.eval.num_questions = 0
    asked.clear()
    Reciting.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "part", "x")
    assert answers(folder) == earlier
    asked.clear()
    Reciting.stop_at = 0
    evaluate(config, tmp_path / "part", "x")
    assert asked == ["record 'r4'"]
    assert bytes_of(folder) == bytes_of(tmp_path / "whole" / "eval" / "x")


def test_answers_are_of_these_records(config, tmp_path, monkeypatch):
    """Corrected records are answered again: no answer counts under what its label was before."""
    monkeypatch.setattr(run, "Engine", RecitingEngine)
    folder = evaluate(config, tmp_path, "x")
    records = read_records(config.data.test_records)
    changed = [{**vars(record), "risky": not record.risky} for record in records]
    write_records([type(records[0])(**fields) for fields in changed], config.data.test_records)
    evaluate(config, tmp_path, "x")
    assert [tree["risky"] for tree in answers(folder)[1]] == [not r.risky for r in records]


def test_answers_that_are_not_there_or_damaged_are_one_line(config, tmp_path, monkeypatch):
    """With the command that makes them."""
    monkeypatch.setattr(run, "Engine", RecitingEngine)
    with pytest.raises(UserError, match="no answers; run `srpo eval --name=x`"):
        read_answers(tmp_path / "eval" / "x")
    folder = evaluate(config, tmp_path, "x")
    (shard,) = folder.glob("answers-*/*.array_record")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing or damaged; run `srpo eval` again"):
        read_answers(folder)
    evaluate(config, tmp_path, "x")
    assert len(answers(folder)[1]) == 5


def test_every_question_sees_demonstrations_of_its_own_category(config, tmp_path, monkeypatch):
    """A question of a category without any is told before anything is sampled, and a demonstration
    that is one of the questions, too.
    """
    asked = {}

    class Reciting(RecitingEngine):
        def _answer(self, request):
            asked[request.name] = self.processor.decode(request.prompt.tokens.tolist())
            return super()._answer(request)

    monkeypatch.setattr(run, "Engine", Reciting)
    records = read_records(config.data.test_records)
    kinds = (None, *CATEGORIES[:2])
    made = [replace(record, category=kinds[i % 3]) for i, record in enumerate(records)]
    write_records(made, config.data.test_records)
    demos = [
        Record(f"d{i}", (), f"Shown {i}?", ("I look.",), "So.", category=kinds[i]) for i in range(3)
    ]
    write_records(demos, tmp_path / "demos.jsonl")
    with config.unlocked():
        config.prompt.demos, config.prompt.num_demos = str(tmp_path / "demos.jsonl"), 1
        config.prompt.demo_select, config.prompt.system = "category", "safety"
    evaluate(config, tmp_path, "icl")
    for i, record in enumerate(made):
        text = asked[f"record {record.id!r}"]
        assert [f"Shown {k}?" in text for k in range(3)] == [k == i % 3 for k in range(3)]
        assert SAFETY in text
    asked.clear()
    write_records(demos[:2], tmp_path / "demos.jsonl")
    with pytest.raises(UserError, match=f"record 'r2': .*category {CATEGORIES[1]}, only of"):
        evaluate(config, tmp_path, "few")
    write_records([*demos[:2], replace(demos[2], id="r2")], tmp_path / "demos.jsonl")
    with pytest.raises(UserError, match="demonstration 'r2' of prompt.demos is record 'r2'"):
        evaluate(config, tmp_path, "same")
    assert not asked and len(list((tmp_path / "eval").glob("*/answers.json"))) == 1
