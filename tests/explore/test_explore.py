"""Exploration end to end on a tiny policy: what is recorded, resuming, other runs' shards."""

import json
import shutil

import numpy as np
import pytest

from srpo_jax.data_pipelines.path_format import tokenize_reference
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.tree_store import read_shards, shard_done, shard_path
from srpo_jax.errors import UserError
from srpo_jax.explore import explore as run
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.explore.explorer import branch_seed
from srpo_jax.explore.self_reference import split_pieces
from srpo_jax.inference.policy import choose_questions
from srpo_jax.models.hf.processor import Processor
from tests.support.small_world import ArithmeticArbiter, RecitingSampler, write_world
from tests.support.tiny import picture


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def processor(config):
    return Processor.from_dir(config.model.path)


@pytest.fixture(scope="module")
def full(config, tmp_path_factory):
    """(workdir, arbiter) of an exploration that nothing stopped, with the real sampler."""
    workdir, arbiter = tmp_path_factory.mktemp("full"), ArithmeticArbiter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_arbiter", lambda kind: arbiter)
        explore(config, workdir)
    return workdir, arbiter


@pytest.fixture
def arbiter(monkeypatch):
    """Returns a function that installs an arbiter."""

    def install(**options):
        made = ArithmeticArbiter(**options)
        monkeypatch.setattr(run, "make_arbiter", lambda kind: made)
        return made

    return install


@pytest.fixture
def reciting(monkeypatch):
    """The samplers that a run makes, in order, all reciting."""
    made = []

    def make(*args, **kwargs):
        made.append(RecitingSampler(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(explorer, "Sampler", make)
    return made


def shard_bytes(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / "trees").iterdir())}


def test_records_hold_every_prefix_and_its_verdicts(config, processor, full):
    """n prefixes x K branches each, cut at the reference's own tokens, judged as whole paths:
    the arbiter saw the reference steps before each branch's own."""
    workdir, arbiter = full
    trees = {tree["id"]: tree for tree in read_shards(workdir / "trees")}
    records = read_records(config.data.train_records)
    assert sorted(trees) == [r.id for r in records]
    cases = iter(arbiter.cases)
    for record in records:
        tree = trees[record.id]
        pieces = [piece.tolist() for piece in tokenize_reference(record, processor)]
        assert [*tree["steps"], tree["reply"]] == pieces
        plan = [(at, k) for at in range(len(record.steps)) for k in range(2)]
        assert [(b["at"], b["k"]) for b in tree["branches"]] == plan
        for branch in tree["branches"]:
            case = next(cases)
            assert case.record == record and case.finished == branch["finished"]
            assert case.steps[: branch["at"]] == record.steps[: branch["at"]]
            assert len(branch["step_verdicts"]) == len(case.steps)
            assert 1 <= len(branch["tokens"]) <= 6
            assert branch["text"] == processor.decode(branch["tokens"])
    assert tree["provenance"]["sampler"]["temperature"] == 3.0

    summary = json.loads((workdir / "trees/summary.json").read_text())
    assert summary["branches"] == sum(len(t["branches"]) for t in trees.values()) == 24
    assert [p["branches"] for p in summary["points"]] == [10, 10, 4]
    point = summary["points"][0]
    assert point["safe"] + point["unsafe"] + point["error"] == point["branches"]


def test_interrupted_and_run_again_gives_the_same_bytes(config, full, arbiter, tmp_path, capsys):
    """Stopped inside the second shard: the first stays, the second is not half written, and the
    same command ends with exactly the bytes of a run that was never stopped."""
    arbiter(stop_at=12)
    with pytest.raises(KeyboardInterrupt):
        explore(config, tmp_path)
    assert shard_done(shard_path(tmp_path / "trees", 0, 2))
    assert not shard_path(tmp_path / "trees", 1, 2).exists()
    again = arbiter()
    explore(config, tmp_path)
    assert {case.record.id for case in again.cases} == {"r2", "r3", "r4"}
    assert shard_bytes(tmp_path) == shard_bytes(full[0])
    out = capsys.readouterr().out
    assert "3/3 questions" in out and "s left" in out and "have a pair" in out


def test_a_shard_that_another_worker_finished_meanwhile_is_left(
    config, full, arbiter, reciting, tmp_path, monkeypatch
):
    """A worker that was taken for dead comes back with its shard: the files stay as they are."""
    written, found = [], []
    monkeypatch.setattr(run, "write_shard", lambda path, trees: written.append(path))

    class OvertakenArbiter(ArithmeticArbiter):
        def judge(self, cases):
            verdicts = super().judge(cases)
            for path in sorted((full[0] / "trees").glob("trees-*")):  # the other worker's files
                shutil.copy(path, tmp_path / "trees" / path.name)
                found.append(path)
            return verdicts

    (tmp_path / "trees").mkdir()
    monkeypatch.setattr(run, "make_arbiter", lambda kind: OvertakenArbiter())
    explore(config, tmp_path)
    assert found and not written
    assert shard_bytes(tmp_path).keys() == shard_bytes(full[0]).keys()


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
def test_shards_of_another_run_are_refused(config, full, arbiter, tmp_path, change, named):
    """A workdir that holds another run's shards is named with what differs, and left as it is."""
    arbiter()
    shutil.copytree(full[0], tmp_path / "w")
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=f"trees-00.*another run.*{named}"):
        explore(other, tmp_path / "w")
    assert shard_bytes(tmp_path / "w") == shard_bytes(full[0])


def test_another_chat_template_is_another_run(config, full, arbiter, tmp_path):
    """Trees never mix two prompts: the same weights with another template are refused, and every
    tree says what its policy was told."""
    arbiter()
    shutil.copytree(full[0], tmp_path / "w")
    shutil.copytree(config.model.path, tmp_path / "model")
    file = tmp_path / "model" / "chat_template.json"
    file.write_text(file.read_text().replace("assistant", "helper"))
    other = config.copy_and_resolve_references()
    other.model.path = str(tmp_path / "model")
    with pytest.raises(UserError, match="trees-00.*another run.*prompt_digest was"):
        explore(other, tmp_path / "w")
    tree = read_shards(full[0] / "trees")[0]
    assert "{question}" in tree["provenance"]["prompt"]["instruction"]


def test_a_demonstration_from_the_records_is_refused(config, arbiter, tmp_path):
    """Before the first branch: a policy that is shown the answer explores nothing."""
    arbiter()
    other = config.copy_and_resolve_references()
    other.prompt.demos, other.prompt.num_demos = config.data.train_records, 1
    with pytest.raises(UserError, match="'r0' of prompt.demos is record 'r0'"):
        explore(other, tmp_path)
    assert not (tmp_path / "trees").exists()


def test_first_branch_point_only(config, arbiter, reciting, tmp_path):
    """branch_points=first samples whole replies: nothing after any step."""
    arbiter()
    other = config.copy_and_resolve_references()
    other.explore.branch_points = "first"
    trees = list(read_shards(explore(other, tmp_path)))
    assert all([b["at"] for b in tree["branches"]] == [0, 0] for tree in trees)
    assert all(len(request.path) == 0 for request in reciting[0].requests)


def test_reference_self(config, arbiter, processor, reciting, tmp_path, capsys):
    """The first safe, finished path with steps and a reply becomes the reference, with its own
    tokens; a question without one is left out, counted and named."""
    arbiter()
    other = config.copy_and_resolve_references()
    other.explore.reference = "self"
    original = RecitingSampler._say
    hopeless = {branch_seed(0, "r1", "reference", k) for k in range(10)}

    def say(self, seed):
        return original(self, 2 if seed in hopeless else seed)  # "Reply: no steps."

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecitingSampler, "_say", say)
        trees = {tree["id"]: tree for tree in read_shards(explore(other, tmp_path))}
    assert "r1" not in trees and len(trees) >= 3
    summary = json.loads((tmp_path / "trees/summary.json").read_text())
    assert "r1" in summary["dropped"] and "'r1'" in capsys.readouterr().out
    for tree in trees.values():
        assert tree["step_texts"] in (["Look here."], ["Look there.", "Think."])
        whole = np.concatenate([*tree["steps"], tree["reply"]])
        assert tree["reply"][-1] in processor.eos_ids
        lines = [*tree["step_texts"], "Reply: " + tree["reply_text"]]
        assert processor.decode(whole) == "\n".join(lines)
        assert {b["at"] for b in tree["branches"]} == set(range(len(tree["steps"])))


def test_generated_tokens_are_cut_at_line_ends(processor):
    """Pieces decode to one step each and then the reply, whatever the tokens are; what cannot be
    cut so is no reference."""

    def pieces(text):
        found = split_pieces([*processor.encode(text), processor.eos_ids[0]], processor)
        return found and [processor.decode(piece) for piece in found]

    assert pieces("One.\nTwo.\nReply: a\nb") == ["One.\n", "Two.\n", "Reply: a\nb"]
    assert pieces("One.\n\nTwo.\nReply: a") in (
        ["One.\n\n", "Two.\n", "Reply: a"],
        ["One.\n", "\nTwo.\n", "Reply: a"],
    )
    for text in ("Reply: a", "One.\nTwo.", "One.\nReply:", ""):
        assert pieces(text) is None


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


def test_a_broken_picture_is_named_before_any_sampling(config, arbiter, reciting, tmp_path):
    """The last record's picture is read before the first record is sampled."""
    arbiter()
    shutil.copytree(f"{config.model.path}/..", tmp_path / "world")
    (tmp_path / "world/images/4.png").write_bytes(b"no picture")
    other = config.copy_and_resolve_references()
    other.data.train_records = str(tmp_path / "world/records.jsonl")
    with pytest.raises(UserError, match="r4.*4.png"):
        explore(other, tmp_path / "out")
    assert not reciting and not list((tmp_path / "out").glob("trees/*"))


def test_a_picture_the_processor_refuses_is_named(config, arbiter, reciting, tmp_path):
    """A valid image of a hopeless shape is an error with the record's id."""
    arbiter()
    shutil.copytree(f"{config.model.path}/..", tmp_path / "world")
    picture(3000, 10).save(tmp_path / "world/images/1.png")
    other = config.copy_and_resolve_references()
    other.data.train_records = str(tmp_path / "world/records.jsonl")
    with pytest.raises(UserError, match="record 'r1'.*3000x10"):
        explore(other, tmp_path / "out")
