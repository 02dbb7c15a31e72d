"""`srpo eval --benchmark` and `srpo judge --answers`, by the command line alone."""

from __future__ import annotations

import json
import re

import pytest

from srpo_jax.cli import evaluating
from srpo_jax.cli.main import main
from srpo_jax.errors import UserError
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.evaluate.benchmarks.registry import chosen
from tests.support.benchmark_items import write_json, write_pictures
from tests.support.chat_stub import ChatStub
from tests.support.small_world import RecitingEngine, write_world

CONFIG = """
from srpo_jax.configs import common


def get_config():
    config = common.get_config()
    config.model.path = {model!r}
    config.eval.max_new_tokens = 6
    return config.lock()
"""
OUTSIDE = """
from srpo_jax.evaluate.benchmarks.rsbench import RsBench


class Mine(RsBench):
    name = "mine"
    title = "my own"
    rubrics = "reply_safety"

    def measure(self, rows):
        return {"reply_safe": super().measure(rows)["reply_safe"]}
"""
ITEM = {"question_id": 1, "image": "a.png", "question": "What now?", "category": "morality"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    (tmp_path / "mine.py").write_text(CONFIG.format(model=str(tmp_path / "model")))
    write_pictures(tmp_path / "sets" / "siuo", "a.png")
    item = {**ITEM, "safety_warning": "Mind the gap.", "reference_answer": "Wait."}
    write_json(tmp_path / "sets" / "siuo" / "siuo_gen.json", [item])
    write_json(tmp_path / "bad" / "siuo" / "siuo_gen.json", [{**item, "category": None}])
    write_pictures(tmp_path / "mcqa", "a.png")
    options = {"options": dict.fromkeys("ABCD", "x"), "correct_option": "A"}
    write_json(tmp_path / "mcqa" / "siuo_mcqa.json", [item | options])
    return tmp_path


def srpo(capsys, *argv) -> tuple[int, str, str]:
    code = main([*argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_several_benchmarks_at_once(folder, capsys, monkeypatch):
    """One policy answers both; each lies under its own name with its protocol's samples, is judged
    by its own rubric, and its rates stand in scores.json beside the usual ones.
    """
    monkeypatch.setattr(evaluation, "Engine", RecitingEngine)
    loaded = []
    load = evaluating.load_policy
    monkeypatch.setattr(
        evaluating, "load_policy", lambda *a, **k: loaded.append(a) or load(*a, **k)
    )
    # With this seed the three answers are: no steps, Yes, and one without a reply.
    where = ("--config=mine.py", "--workdir=run", "--config.seed=1")
    both = ("--benchmark=rsbench,siuo", "--data=sets")
    code, out, _ = srpo(capsys, "eval", *where, *both)
    assert code == 0 and len(loaded) == 1
    assert "`srpo judge --answers=rsbench`" in out and "`srpo judge --answers=siuo`" in out
    with ChatStub(harmful="No") as stub:
        asked = ("--config.arbiter.kind=prompted", f"--config.judge.base_url={stub.url}")
        model = "--config.judge.model=judge"
        code, out, _ = srpo(capsys, "judge", *where, "--answers=siuo", *asked, model)
        assert code == 0 and stub.calls > 0
        assert "Mind the gap." in json.dumps(stub.bodies)
    scores = json.loads((folder / "run" / "eval" / "siuo" / "scores.json").read_text())
    assert scores["benchmark"] == "siuo" and scores["decoding"]["samples"] == 3
    metrics = {name: (rate["k"], rate["n"]) for name, rate in scores["metrics"].items()}
    assert metrics["safe_and_effective"] == (1, 1) and metrics["judged"] == (2, 3)
    named = [rubric["name"] for rubric in scores["judge"]["spec"]["rubrics"]]
    assert named == ["siuo_safety", "siuo_effectiveness"]
    assert "SIUO, generation" in out and "GPT-4o: safe 50.9" in out


def test_a_benchmark_of_ones_own_and_a_served_policy(folder, capsys):
    """By module:Class; answered by a server, judged by a script that says what every reply is."""
    (folder / "own_set.py").write_text(OUTSIDE)
    write_json(folder / "cases.jsonl", {"reply_verdict": "SAFE", "labels": {"reply": "safe"}})
    message = {"role": "assistant", "content": "Look.\nReply: Yes."}
    body = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}
    where = ("--config=mine.py", "--workdir=run")
    with ChatStub(script=[(200, {}, body)] * 14) as stub:
        served = ("--served_model=m", f"--base_url={stub.url}")
        code, out, _ = srpo(capsys, "eval", *where, "--benchmark=own_set:Mine", *served)
        assert code == 0 and stub.calls == 14 and f"policy: m at {stub.url}" in out
    script = ("--config.arbiter.kind=scripted", "--config.judge.cases=cases.jsonl")
    code, out, _ = srpo(capsys, "judge", *where, "--answers=Mine", *script)
    assert code == 0 and "my own\n  reply_safe  100.0 %  7/7" in out


@pytest.mark.parametrize(
    "words, said",
    [
        ("--benchmark=suio --data=sets", "--benchmark='suio' does not exist; .*did you mean siuo?"),
        ("--benchmark=siuo", "--data=DIR is missing: siuo is to be had from huggingface.co"),
        ("--benchmark=siuo --data=nowhere", "nowhere does not exist; for siuo it holds siuo_gen"),
        ("--benchmark=siuo --data=.", "has no siuo_gen.json"),
        ("--benchmark=siuo,siuo --data=sets", "one is named twice"),
        ("--benchmark=rsbench,", "--benchmark=rsbench,: a name is missing beside a comma"),
        (
            "--benchmark=rsbench,vlsbench --data=sets",
            "--data=DIR is missing: vlsbench is",
        ),
        ("--benchmark=rsbench,siuo --data=bad", "siuo_gen.json:1: field 'category' is missing"),
        ("--benchmark=siuo_mcqa --data=mcqa --served_model=m", "siuo_mcqa needs log-probabilities"),
        ("--benchmark=siuo --data=other=sets", "NAME=FOLDER with commas between for the bench"),
        ("--data=sets", "--data goes with --benchmark=NAME"),
        ("--base_url=http://a", "--base_url goes with --served_model"),
        ("--benchmark=rsbench --served_model=m --model=model", "exclude each other"),
        ("--benchmark=tests.support.tiny:picture", "calling it raises"),
        ("--benchmark=pathlib:PurePath", "is no srpo_jax.evaluate.benchmarks.base.Benchmark"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, words, said):
    """Exit code 2, and no answers."""
    code, _, err = srpo(capsys, "eval", "--config=mine.py", "--workdir=run", *words.split())
    assert code == 2 and re.search(said, err) and err.count("\n") == 1
    assert not list(folder.glob("run/eval/*/answers.json"))


def test_which_folder_is_whose():
    """One benchmark has the folder; several have one below it each, or what stands beside their
    names; a name stands in front of those of several.
    """
    assert chosen("siuo", "d", "") == [("siuo", "d", "siuo")]
    assert chosen("siuo", "d", "before") == [("siuo", "d", "before")]
    assert chosen("siuo, m:X", "siuo=a,m:X=b", "t") == [
        ("siuo", "a", "t-siuo"),
        ("m:X", "b", "t-X"),
    ]
    with pytest.raises(UserError, match="--data=siuo=: must be a folder, or NAME=FOLDER"):
        chosen("siuo", "siuo=", "")
