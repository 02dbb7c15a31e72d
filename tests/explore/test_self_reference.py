"""explore.reference=self: the policy's own whole paths are judged, and branches leave the first
safe one, whether the arbiter sits in the same process or on another machine.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.path_formats.tokens import cut_tokens
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.errors import UserError
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.explore.explorer import branch_seed
from srpo_jax.explore.self_reference import with_reference
from srpo_jax.judge.judge import judge
from srpo_jax.models.hf.processor import Processor
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, world_config, write_world

OUTSIDE = """
from tests.support.small_world import ArithmeticArbiter

class Near(ArithmeticArbiter):
    in_process = True

class Far(ArithmeticArbiter):
    pass
"""
CONFIG = """
from srpo_jax.configs import common

def get_config():
    config = common.get_config()
    config.model.path = "model"
    config.data.train_records = config.data.test_records = "records.jsonl"
    config.explore.branches, config.explore.batch, config.explore.shards = 2, 2, 2
    config.explore.max_new_tokens, config.explore.temperature = 6, 3.0
    config.explore.reference = "self"
    return config
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    (folder / "mine.py").write_text(CONFIG)
    (folder / "judges_from_outside.py").write_text(OUTSIDE)
    return folder


@pytest.fixture(scope="module")
def processor(world):
    return Processor.from_dir(world / "model")


@pytest.fixture
def config(world, monkeypatch):
    """Of the world, with a sampler that recites."""
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    made = world_config(world)
    made.explore.reference = "self"
    return made


def test_branches_leave_the_first_path_that_is_judged_safe(
    config, processor, monkeypatch, tmp_path, capsys
):
    """It becomes the reference with its own tokens; a question without one is left out, counted and
    named. Until the whole paths are judged there are only these, and the user is told.
    """
    original = RecitingEngine._say
    hopeless = {branch_seed(0, "r1", "reference", k) for k in range(10)}

    def say(self, seed):
        return original(self, 2 if seed in hopeless else seed)  # "Reply: no steps."

    monkeypatch.setattr(RecitingEngine, "_say", say)
    arbiter = ArithmeticArbiter()
    assert explore(config, tmp_path) == tmp_path / "roots"
    said = capsys.readouterr().out
    assert "run `srpo judge` and then this command again" in said and "10 whole paths each" in said
    assert not (tmp_path / "trees").exists()
    judge(config, tmp_path, arbiter=arbiter)
    assert all(not case.record.steps and not case.record.reply for case in arbiter.cases)
    assert explore(config, tmp_path) == tmp_path / "trees"

    trees = {tree["id"]: tree for tree in read_shards(tmp_path / "trees")}
    assert "r1" not in trees and len(trees) >= 3
    summary = json.loads((tmp_path / "trees/summary.json").read_text())
    assert "r1" in summary["dropped"] and "'r1'" in capsys.readouterr().out
    for root in read_shards(tmp_path / "roots"):
        assert (root["steps"], root["step_texts"], root["reply_text"]) == ([], [], "")
        safe = [
            branch
            for branch in root["branches"]
            if branch["status"] == "ok"
            and branch["step_texts"]
            and arbiter.verdict(branch["step_texts"], branch["reply_text"]) == "SAFE"
        ]
        if root["id"] not in trees:
            assert not safe
            continue
        tree = trees[root["id"]]
        whole = np.concatenate([*tree["steps"], tree["reply"]])
        assert whole.tolist() == safe[0]["tokens"] and tree["reply"][-1] in processor.eos_ids
        lines = [*tree["step_texts"], "Reply: " + tree["reply_text"]]
        assert processor.decode(whole) == "\n".join(lines)
        assert {b["at"] for b in tree["branches"]} == set(range(len(tree["steps"])))


def run(capfd, *arguments: str) -> tuple[int, str]:
    code = cli.main(["--config=mine.py" if a == "mine" else a for a in arguments])
    said = capfd.readouterr()
    return code, said.out + said.err


def test_both_ways_give_the_same_trees(config, world, tmp_path, capfd, monkeypatch):
    """An arbiter that needs no server is asked at once by `srpo explore`; for any other the verbs
    are given one after the other. Byte for byte the trees are the same, and a third start changes
    nothing.
    """
    monkeypatch.chdir(world)
    near, far = f"--workdir={tmp_path / 'near'}", f"--workdir={tmp_path / 'far'}"
    kinds = {"near": "judges_from_outside:Near", "far": "judges_from_outside:Far"}
    kind = {name: f"--config.arbiter.kind={value}" for name, value in kinds.items()}
    assert run(capfd, "explore", "mine", near, kind["near"])[0] == 0
    code, said = run(capfd, "explore", "mine", far, kind["far"])
    assert code == 0 and "run `srpo judge`" in said and not (tmp_path / "far" / "trees").exists()
    assert run(capfd, "judge", "mine", far, kind["far"])[0] == 0
    assert run(capfd, "explore", "mine", far, kind["far"])[0] == 0

    def trees(name):
        folder = tmp_path / name / "trees"
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    before = trees("near")
    assert before == trees("far") and len(before) == 9
    assert run(capfd, "explore", "mine", near, kind["near"])[0] == 0
    assert trees("near") == before


def test_other_verdicts_on_the_paths_make_other_trees(config, tmp_path):
    """Trees whose reference paths were chosen by one judge are not gone on with by another's
    choice; with no safe path at all there is one line.
    """
    explore(config, tmp_path / "a")
    judge(config, tmp_path / "a", arbiter=ArithmeticArbiter(), name="one")
    explore(config, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "verdicts")

    class Harsh(ArithmeticArbiter):
        name = "harsh"

        def verdict(self, steps, reply):
            return "UNSAFE"

    class Other(ArithmeticArbiter):
        name = "other"

    judge(config, tmp_path / "a", arbiter=Other())
    with pytest.raises(UserError, match="another run.*references"):
        explore(config, tmp_path / "a")
    explore(config, tmp_path / "b")
    judge(config, tmp_path / "b", arbiter=Harsh())
    with pytest.raises(UserError, match="none of the whole paths of 5 questions was judged safe"):
        explore(config, tmp_path / "b")
    assert not list((tmp_path / "b").glob("trees/*"))


def test_missing_paths_alone_are_made(config, world, tmp_path):
    """explore.reference=missing: a record with a path keeps it, and the others get the policy's
    own, the one that reference=self takes. With references_only these paths have no branch.
    """
    records = read_records(world / "records.jsonl")
    bare = {"r1", "r2"}
    some = [replace(r, steps=(), reply="") if r.id in bare else r for r in records]
    write_records(some, world / "some.jsonl")
    arbiter = ArithmeticArbiter()

    def made(reference, name, **options):
        config.explore.reference = reference
        folder = tmp_path / name
        assert explore(config, folder, **options) == folder / "roots"
        judge(config, folder, arbiter=arbiter)
        explore(config, folder, **options)
        return {tree["id"]: tree for tree in read_shards(folder / "trees")}

    own = made("self", "own")
    config.data.train_records = str(world / "some.jsonl")
    found = made("missing", "missing")
    assert {root["id"] for root in read_shards(tmp_path / "missing" / "roots")} == bare
    assert set(found) == {r.id for r in records} - (bare - set(own)) and bare & set(own)
    for record in records:
        if record.id in bare & set(own):
            assert found[record.id]["step_texts"] == own[record.id]["step_texts"]
        elif record.id not in bare:
            assert tuple(found[record.id]["step_texts"]) == record.steps
        if record.id in found:
            assert found[record.id]["branches"]
    alone = made("missing", "alone", references_only=True)
    assert {name: tree["step_texts"] for name, tree in alone.items()} == {
        name: tree["step_texts"] for name, tree in found.items()
    }
    assert not any(tree["branches"] for tree in alone.values())


@pytest.mark.parametrize(
    "name, text, pieces",
    [
        ("lines", "One.\n\nTwo.\nReply: a\nb", ["One.\n\n", "Two.\n", "Reply: a\nb"]),
        ("think", "<think>\nA\nB\n\nC</think>\n\nR", ["<think>\nA\nB\n\n", "C</think>\n\n", "R"]),
        ("think", "<think>这是刀。\n\n险</think>不", ["<think>这是刀。\n\n", "险</think>", "不"]),
        ("free", "One.\n\nTwo.\n\nThree.", ["One.\n\n", "Two.\n\n", "Three."]),
    ],
)  # fmt: skip
def test_real_tokens_become_a_record(processor, name, text, pieces):
    """The tokens of a whole turn are cut behind the newlines of each step; the record has a step
    for each of these pieces, however few steps the format would merge them to."""
    path_format = make_format(name, max_steps=1)
    tokens = [*processor.encode(text), processor.eos_ids[0]]
    found = cut_tokens(tokens, processor, path_format)
    assert found is not None and [processor.decode(piece) for piece in found] == pieces
    assert [token for piece in found for token in piece.tolist()] == tokens
    made = with_reference(Record("r", (), "q", (), ""), found, processor, path_format)
    assert len(made.steps) == len(pieces) - 1
    path_format.check(made.steps, made.reply)
