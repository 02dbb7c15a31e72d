"""Exploration end to end on a tiny policy: what is recorded, resuming, other runs' shards."""

import json
import pathlib
import shutil

import pytest

from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.path_formats.tokens import tokenize_reference
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.tree_store import read_shards, shard_done, shard_path
from srpo_jax.errors import UserError
from srpo_jax.explore import explorer, shard_maker
from srpo_jax.explore.explore import explore
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.policy import choose_questions
from srpo_jax.models.hf.processor import Processor
from tests.support.small_world import RecitingEngine, write_world
from tests.support.tiny import picture


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def processor(config):
    return Processor.from_dir(config.model.path)


@pytest.fixture(scope="module")
def full(config, tmp_path_factory):
    """The workdir of an exploration that nothing stopped, with the real engine."""
    workdir = tmp_path_factory.mktemp("full")
    assert explore(config, workdir) == workdir / "trees"
    return workdir


@pytest.fixture
def reciting(monkeypatch):
    """The engines that a run makes, in order, all reciting."""
    made = []

    def make(*args, **kwargs):
        made.append(RecitingEngine(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(explorer, "Engine", make)
    return made


def shard_bytes(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / "trees").iterdir())}


def test_records_hold_every_prefix(config, processor, full):
    """n prefixes x K branches each, cut at the reference's own tokens, each with its text and what
    that says behind the prefix; and nobody has judged anything."""
    trees = {tree["id"]: tree for tree in read_shards(full / "trees")}
    records = read_records(config.data.train_records)
    assert sorted(trees) == [r.id for r in records]
    for record in records:
        tree = trees[record.id]
        pieces = [piece.tolist() for piece in tokenize_reference(record, processor, make_format())]
        assert [*tree["steps"], tree["reply"]] == pieces
        plan = [(at, k) for at in range(len(record.steps)) for k in range(2)]
        assert [(b["at"], b["k"]) for b in tree["branches"]] == plan
        for branch in tree["branches"]:
            prefix = record.steps[: branch["at"]]
            read = make_format().parse_behind(prefix, branch["text"], finished=branch["finished"])
            assert (tuple(branch["step_texts"]), branch["reply_text"]) == (read.steps, read.reply)
            assert branch["status"] == ("no_reply" if branch["finished"] else "unfinished")
            assert 1 <= len(branch["tokens"]) <= 6
            assert branch["text"] == processor.decode(branch["tokens"])
    assert tree["provenance"]["sampler"]["temperature"] == 3.0

    assert not (full / "verdicts").exists()

    summary = json.loads((full / "trees/summary.json").read_text())
    assert summary["branches"] == sum(len(t["branches"]) for t in trees.values()) == 24
    assert [p["branches"] for p in summary["points"]] == [10, 10, 4]
    assert sum(summary["statuses"].values()) == 24


def test_a_tree_says_what_its_tokens_say(config, processor, tmp_path):
    """Of texts that the tokenizer composes (NFC) too: what a judge reads is what is trained on."""
    row = json.loads(pathlib.Path(config.data.train_records).read_text().splitlines()[0])
    row["reference"] = {
        "steps": ["Cafe\u0301 o\u0302 la\u0300.", "S\u0323\u0307 "],
        "reply": "e\u0301",
    }
    root = pathlib.Path(config.data.train_records).parent
    (root / "decomposed.jsonl").write_text(json.dumps(row) + "\n")
    other = config.copy_and_resolve_references()
    other.data.train_records = str(root / "decomposed.jsonl")
    (tree,) = read_shards(explore(other, tmp_path, references_only=True))
    pieces = [*tree["steps"], tree["reply"]]
    read = make_format().parse("".join(processor.decode(ids, after_text=True) for ids in pieces))
    assert tuple(tree["step_texts"]) == read.steps == ("Caf\u00e9 \u00f4 l\u00e0.", "\u1e68")
    assert tree["reply_text"] == read.reply == "\u00e9"


def test_interrupted_and_run_again_gives_the_same_bytes(
    config, full, tmp_path, capsys, monkeypatch
):
    """Stopped inside the second shard: the first stays, the second is not half written, and the
    same command ends with exactly the bytes of a run that was never stopped."""
    asked, done = [], []

    class StoppedEngine(Engine):
        def stream(self, requests):
            def noted():
                for request in requests:
                    asked.append(request.name)
                    yield request

            for number, samples in super().stream(noted()):
                done.append(number)
                if len(done) == 4:
                    raise KeyboardInterrupt
                yield number, samples

    monkeypatch.setattr(explorer, "Engine", StoppedEngine)
    with pytest.raises(KeyboardInterrupt):
        explore(config, tmp_path)
    assert shard_done(shard_path(tmp_path / "trees", 0, 2))
    assert not shard_path(tmp_path / "trees", 1, 2).exists()
    asked.clear()
    explore(config, tmp_path)
    assert asked == ["record 'r2'", "record 'r3'", "record 'r4'"]
    assert shard_bytes(tmp_path) == shard_bytes(full)
    out = capsys.readouterr().out
    assert "3/3 questions" in out and "s left" in out and "24 branches of 5 questions" in out


def test_a_shard_that_another_worker_finished_meanwhile_is_left(
    config, full, tmp_path, monkeypatch
):
    """A worker that was taken for dead comes back with its shard: the files stay as they are."""
    written, found = [], []
    monkeypatch.setattr(shard_maker, "write_shard", lambda path, trees: written.append(path))

    class OvertakenEngine(RecitingEngine):
        def _answer(self, request):
            for path in sorted((full / "trees").glob("trees-*")):  # the other worker's files
                shutil.copy(path, tmp_path / "trees" / path.name)
                found.append(path)
            return super()._answer(request)

    (tmp_path / "trees").mkdir()
    monkeypatch.setattr(explorer, "Engine", OvertakenEngine)
    explore(config, tmp_path)
    assert found and not written
    assert shard_bytes(tmp_path).keys() == shard_bytes(full).keys()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"explore.temperature": 1.0}, "temperature was 3.0, now 1.0"),
        ({"explore.num_questions": 4}, "records"),
        ({"explore.shards": 3}, "shards was 2, now 3"),
        ({"prompt.system": "Be kind."}, "prompt_digest"),
    ],
)
def test_shards_of_another_run_are_refused(config, full, tmp_path, change, named):
    """A workdir that holds another run's shards is named with what differs, and left as it is."""
    shutil.copytree(full, tmp_path / "w")
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=f"trees-00.*another run.*{named}"):
        explore(other, tmp_path / "w")
    assert shard_bytes(tmp_path / "w") == shard_bytes(full)


def test_trees_of_an_older_version_are_refused_by_that_name(config, full, tmp_path):
    """Not by a field that somebody never set."""
    shutil.copytree(full, tmp_path / "w")
    file = tmp_path / "w" / "trees" / "run.json"
    run = json.loads(file.read_text())
    del run["prompt_digest"]
    file.write_text(json.dumps({**run, "arbiter": "rules"}))
    with pytest.raises(UserError, match="made by an older version .*; use another workdir"):
        explore(config, tmp_path / "w")


def test_another_chat_template_is_another_run(config, full, tmp_path):
    """Trees never mix two prompts: the same weights with another template are refused, and every
    tree says what its policy was told."""
    shutil.copytree(full, tmp_path / "w")
    shutil.copytree(config.model.path, tmp_path / "model")
    file = tmp_path / "model" / "chat_template.json"
    file.write_text(file.read_text().replace("assistant", "helper"))
    other = config.copy_and_resolve_references()
    other.model.path = str(tmp_path / "model")
    with pytest.raises(UserError, match="trees-00.*another run.*prompt_digest was"):
        explore(other, tmp_path / "w")
    tree = read_shards(full / "trees")[0]
    assert "{question}" in tree["provenance"]["prompt"]["instruction"]


def test_a_demonstration_from_the_records_is_refused(config, tmp_path):
    """Before the first branch: a policy that is shown the answer explores nothing."""
    other = config.copy_and_resolve_references()
    other.prompt.demos, other.prompt.num_demos = config.data.train_records, 1
    with pytest.raises(UserError, match="'r0' of prompt.demos is record 'r0'"):
        explore(other, tmp_path)
    assert not (tmp_path / "trees").exists()


def test_first_branch_point_only(config, reciting, tmp_path):
    """branch_points=first samples whole replies: nothing after any step."""
    other = config.copy_and_resolve_references()
    other.explore.branch_points = "first"
    trees = list(read_shards(explore(other, tmp_path)))
    assert all([b["at"] for b in tree["branches"]] == [0, 0] for tree in trees)
    assert all(len(request.path) == 0 for request in reciting[0].requests)


def test_a_subset_is_balanced_and_fixed():
    """num_questions: half risky and half benign in the records' order, a function of the seed."""

    class R:
        def __init__(self, id, risky):
            self.id, self.risky = id, risky

    records = [R(i, i % 4 == 0) for i in range(40)]
    chosen = choose_questions(records, 12, seed=0)
    assert sum(r.risky for r in chosen) == 6 and len(chosen) == 12
    assert [r.id for r in chosen] == sorted(r.id for r in chosen)
    assert chosen == choose_questions(records, 12, seed=0) != choose_questions(records, 12, seed=1)
    assert sum(r.risky for r in choose_questions(records, 30, seed=0)) == 10
    assert choose_questions(records, 0, seed=0) == choose_questions(records, 99, seed=0) == records


def test_a_broken_picture_is_named_before_any_sampling(config, reciting, tmp_path):
    """The last record's picture is read before the first record is sampled."""
    shutil.copytree(f"{config.model.path}/..", tmp_path / "world")
    (tmp_path / "world/images/4.png").write_bytes(b"no picture")
    other = config.copy_and_resolve_references()
    other.data.train_records = str(tmp_path / "world/records.jsonl")
    with pytest.raises(UserError, match="r4.*4.png"):
        explore(other, tmp_path / "out")
    assert not reciting and not list((tmp_path / "out").glob("trees/*"))


def test_a_picture_the_processor_refuses_is_named(config, reciting, tmp_path):
    """A valid image of a hopeless shape is an error with the record's id."""
    shutil.copytree(f"{config.model.path}/..", tmp_path / "world")
    picture(3000, 10).save(tmp_path / "world/images/1.png")
    other = config.copy_and_resolve_references()
    other.data.train_records = str(tmp_path / "world/records.jsonl")
    with pytest.raises(UserError, match="record 'r1'.*3000x10"):
        explore(other, tmp_path / "out")
