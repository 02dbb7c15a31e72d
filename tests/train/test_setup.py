"""srpo_jax/train/setup.py: what a run is trained on, and what it refuses to be trained on."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.tree_store import TreeSource, shard_path, write_shard
from srpo_jax.errors import UserError
from srpo_jax.export.model_card import model_card
from srpo_jax.runs.identity import write_config
from srpo_jax.train.dry_run import dry_run
from srpo_jax.train.loop import train
from srpo_jax.train.losses.objective import Objective, srpo_loss
from srpo_jax.train.setup import headline, make_setup
from tests.support import ROOT, judged
from tests.support.judged import branch, verdict
from tests.support.tiny import tiny_qwen2_5_vl
from tests.train.test_loop import make_config, tree_record


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("setup") / "model")


@pytest.fixture
def world(model, tmp_path):
    """A folder of a test's own, with the model in it."""
    (tmp_path / "model").symlink_to(model)
    return tmp_path


def config_of(world, variant="srpo"):
    config = make_config(world)
    config.objective.pairing = "all"
    if variant == "dpo":
        config.objective.update(contrast="dpo", branch_points="first", ref_coef=0.0)
    return config


def relabelled(record: dict, *verdicts: str, **changes) -> dict:
    """The tree with these verdicts on the branches of every point."""
    branches = [
        {**old, **verdict(verdicts[old["k"] % len(verdicts)]), **changes}
        for old in record["branches"]
    ]
    return {**record, "branches": branches}


NO_PAIR = {
    "all safe": [relabelled(tree_record(i), "SAFE") for i in range(3)],
    "all ERROR": [relabelled(tree_record(i), "ERROR") for i in range(3)],
    "all unfinished": [relabelled(tree_record(i), "SAFE", finished=False) for i in range(3)],
    "at different points": [
        {
            **tree_record(0),
            "branches": [branch(0, 0, "SAFE"), branch(1, 0, "UNSAFE")],
        }
    ],
}


@pytest.mark.parametrize("variant", ["srpo", "dpo"])
@pytest.mark.parametrize("name", NO_PAIR)
def test_without_a_pair_nothing_that_compares_is_trained(world, name, variant):
    """One line that says so, from the run and from its dry run; no workdir is made."""
    judged.write_judged(world / "trees", NO_PAIR[name])
    said = []
    for start in (make_setup, dry_run, train):
        with pytest.raises(UserError, match="none of .*pair of a safe and an unsafe branch") as e:
            start(config_of(world, variant), world / "run")
        said.append(str(e.value))
    assert len(set(said)) == 1 and "\n" not in said[0] and "srpo judge" in said[0]
    assert not (world / "run").exists()
    config = config_of(world)
    config.objective.lambda_exp = 0.0
    assert make_setup(config, world / "run").batches.pairs == 0


def test_it_is_a_mistake_of_the_user_on_the_command_line(world, capfd):
    """Exit code 2, one line."""
    judged.write_judged(world / "trees", NO_PAIR["all ERROR"])
    code = cli.main(
        [
            "train",
            f"--config={ROOT}/configs/photos.py",
            f"--config.model.path={world / 'model'}",
            f"--config.data.trees={world / 'trees'}",
            f"--config.data.train_records={world}/none.jsonl",
            f"--config.data.test_records={world}/none.jsonl",
            "--config.arbiter.kind=mine",
            "--config.pack.rows=2",
            f"--workdir={world / 'run'}",
        ]
    )
    said = capfd.readouterr().err.splitlines()
    assert code == 2 and len([line for line in said if "error" in line]) == 1, said
    assert "none of 3 questions has a pair" in said[-1] and not (world / "run").exists()


DILUTED = [
    relabelled(tree_record(0), "SAFE", "UNSAFE"),
    *(relabelled(tree_record(i), "SAFE") for i in range(1, 4)),
]


@pytest.mark.parametrize(
    "switches, total",
    [
        ({"reference": "none"}, 1.0),
        ({"reference": "dataset", "ref_coef": 0.0}, 1.0),
        ({"reference": "dataset", "ref_coef": 1.0}, 1.0),
        ({"reference": "dataset", "ref_coef": 1.0, "exp_denominator": "all"}, 0.25),
    ],
)
def test_a_pair_weighs_the_same_whatever_the_other_questions_are(world, switches, total):
    """Four questions, one with a pair: DPO's loss before the first step, where policy and reference
    policy are one, is log 2; with exp_denominator=all it is spread over the four.
    """
    judged.write_judged(world / "trees", DILUTED)
    config = config_of(world, "dpo")
    config.objective.update(switches)
    rows = len(make_setup(config, world / "x").batches.plan(0).rows)
    config.pack.rows = rows
    setup = make_setup(config, world / "x")
    batch = setup.batches[0]
    logps = np.random.default_rng(0).uniform(-9, 0, batch["target_parent"].shape)
    loss, _ = srpo_loss(
        logps, batch, Objective(contrast="dpo", ref_coef=0.0, lambda_exp=1.0), logps
    )
    assert float(loss) == pytest.approx(math.log(2) * total, abs=1e-6)
    assert (setup.batches.with_pair, setup.batches.pairs) == (1, 1)
    learns = switches.get("ref_coef", 0.0) and switches["reference"] == "dataset"
    assert setup.batches.used == ([0, 1, 2, 3] if learns else [0])
    assert batch["ref_weight"].sum() == pytest.approx(1.0 if learns else 0.0)


def test_what_has_no_weight_is_not_laid_out(world):
    """ref_coef=0: no reference path behind the last branch point; lambda_exp=0: no branch, and no
    verdict is needed.
    """
    records = [tree_record(i) for i in range(4)]
    judged.write_trees(world / "trees", records)

    def tokens(**switches):
        config = config_of(world)
        config.objective.update(switches)
        setup = make_setup(config, world / "run")
        items = setup.batches.plan(0).items
        return sum(item.sizes.tokens for item in items), sum(item.sizes.pairs for item in items)

    alone = tokens(lambda_exp=0.0)
    with pytest.raises(UserError, match="not judged yet: run `srpo judge` first"):
        tokens()
    judged.write_verdicts(world / "trees", records)
    assert alone == tokens(lambda_exp=0.0) and alone[1] == 0
    both, pairs = tokens()[0], tokens(ref_coef=0.0)[0]
    last = sum(len(r["steps"][-1]) + len(r["reply"]) for r in records)
    assert both - pairs == last
    own = sum(len(branch["tokens"]) for record in records for branch in record["branches"])
    assert alone[0] <= both - own


def test_unsafe_reference_paths_can_be_left_out(world, capsys):
    """They are counted, and their branches go with them; with none left there is one line. The
    choice is part of the run, and needs verdicts also where nothing is compared.
    """
    records = [
        {**tree_record(i), "reference_verdict": verdict(word)}
        for i, word in enumerate(("SAFE", "UNSAFE", "ERROR", "SAFE"))
    ]
    judged.write_judged(world / "trees", records)
    config = config_of(world)
    config.arbiter.filter_references = True
    setup = make_setup(config, world / "run")
    ids = [setup.batches.examples.outline(i).id for i in setup.batches.used]
    assert ids == ["t0", "t3"] and "not judged safe: 2 questions" in capsys.readouterr().out
    assert setup.run["arbiter.filter_references"] is True
    config.objective.lambda_exp = 0.0
    assert len(make_setup(config, world / "run").batches.used) == 2
    config.arbiter.filter_references = False
    assert len(make_setup(config, world / "run").batches.used) == 4
    config.arbiter.update(filter_references=True, scope="path")
    judged.write_verdicts(
        world / "trees",
        [{**record, "reference_verdict": verdict("SAFE", "UNSAFE")} for record in records],
        name="strict",
    )
    config.arbiter.verdicts = "strict"
    with pytest.raises(UserError, match="strict has no safe reference path among 4"):
        make_setup(config, world / "run")


def test_verdicts_must_be_whole(world):
    """A shard that was not judged, or was sampled anew since, is named with what to do; shards
    without a tree, too.
    """
    records = [tree_record(i) for i in range(4)]
    judged.write_trees(world / "trees", records[:2], records[2:])
    verdicts = judged.write_verdicts(world / "trees", records[:2], records[2:])
    config = config_of(world)
    make_setup(config, world / "run")
    other = {**tree_record(2), "question": "Another?"}
    write_shard(shard_path(world / "trees", 1, 2), [judged.plain(other)])
    with pytest.raises(UserError, match="no verdicts on all of tree 't2': run `srpo judge` again"):
        make_setup(config, world / "run")
    for path in verdicts.folder.glob("trees-00001*"):
        path.unlink()
    with pytest.raises(UserError, match="on 1 of 2 shards .*trees-00001-of-00002.*`srpo judge`"):
        make_setup(config, world / "run")
    judged.write_trees(world / "empty" / "trees", [])
    config.data.trees = str(world / "empty" / "trees")
    with pytest.raises(UserError, match="hold no tree; run `srpo explore`"):
        make_setup(config, world / "run")


def test_a_later_start_reads_one_tree(world, monkeypatch):
    """For what sampled it. All else, from token counts to labels, is beside the trees and verdicts;
    a dry run reads as much and leaves nothing there; --verify reads all, and names what is damaged.
    """
    records = [tree_record(i) for i in range(6)]
    judged.write_judged(world / "trees", records[:3], records[3:])
    config = config_of(world)
    before = {path for path in world.rglob("*.npz")}
    dry_run(config, world / "run")
    assert {path for path in world.rglob("*.npz")} == before == set()
    first = make_setup(config, world / "run")
    made = {path.name.split(".")[1].split("-")[0] for path in world.rglob("*.npz")}
    assert made == {"outlines", "items", "keys", "labels"}
    read, get = [], TreeSource.__getitem__
    monkeypatch.setattr(TreeSource, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    again = make_setup(config, world / "run")
    assert read == [0] and again.run == first.run and again.facts() == first.facts()
    batch = again.batches[0]
    assert len(read) > 1 and all(np.array_equal(batch[k], v) for k, v in first.batches[0].items())
    make_setup(config, world / "run", verify=True)
    path = shard_path(world / "trees", 1, 2)
    data, times = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    make_setup(config, world / "run")
    with pytest.raises(UserError, match="trees-00001-of-00002.*damaged shard"):
        make_setup(config, world / "run", verify=True)


def test_two_judges_make_two_trainings_of_one_exploration(world):
    """A name is asked for when there are two sets; each gives its own labels and another identity,
    over the same trees; going on with the other judge's verdicts is refused.
    """
    records = [tree_record(i) for i in range(4)]
    judged.write_judged(world / "trees", records, name="mild")
    harsh = [
        relabelled(records[0], "SAFE", "UNSAFE"),
        *(relabelled(r, "UNSAFE") for r in records[1:]),
    ]
    config = config_of(world)
    only = make_setup(config, world / "run")
    judged.write_verdicts(world / "trees", harsh, name="harsh")
    with pytest.raises(UserError, match="2 sets .*arbiter.verdicts=NAME.*harsh, mild"):
        make_setup(config, world / "run")
    found = {}
    for name in ("mild", "harsh"):
        config.arbiter.verdicts = name
        found[name] = make_setup(config, world / "run")
    assert found["mild"].run == only.run
    assert found["mild"].run["trees"] == found["harsh"].run["trees"]
    assert found["mild"].run["verdicts"] != found["harsh"].run["verdicts"]
    assert [setup.batches.with_pair for setup in found.values()] == [4, 1]

    (world / "run" / "checkpoints" / "3").mkdir(parents=True)
    write_config(config, only.run, only.facts(), world / "run")
    config.arbiter.verdicts = "harsh"
    with pytest.raises(UserError, match="another run .*verdicts was"):
        dry_run(config, world / "run")


def test_a_run_says_whose_labels_it_was_trained_on(world):
    """config.json, dry run and model card name set, arbiter and digest, and count pairs; a run that
    compares nothing says that.
    """
    records = [*DILUTED, relabelled(tree_record(5), "SAFE", finished=False)]
    judged.write_judged(world / "trees", records, name="mine")
    config = config_of(world)
    setup = make_setup(config, world / "run")
    pairs = len(records[0]["steps"])
    assert setup.facts() == {
        "questions": 5,
        "questions_with_pair": 1,
        "pairs": pairs,
        "labels": None,
        "verdicts": {"set": "mine", "arbiter": "mine", "digest": "digest of mine", "spec": {}},
    }
    said = dry_run(config, world / "run")
    assert (
        f"data: 5 questions, 1 with a pair, {pairs} pairs in all; verdicts: mine, by mine" in said
    )
    assert "labels: " not in said
    summary = {"branches": 8, "safe": 4, "unsafe": 2, "error": 2, "unfinished": 1}
    summary["references"] = {"safe": 3, "unsafe": 2, "error": 0}
    (setup.verdicts.folder / "summary.json").write_text(json.dumps(summary))
    told = "of 8 branches 50.0 % safe, 25.0 % unsafe, 25.0 % ERROR (12.5 % unfinished)"
    said = dry_run(config, world / "run")
    assert told in said and "reference paths: 2 unsafe" in said
    setup = make_setup(config, world / "run")
    assert told in headline(config, setup, 0) and "verdicts: mine" in headline(config, setup, 0)
    for stale in ({"scope": "path"}, {"trees": "of others"}):
        text = json.dumps({**summary, **stale})
        (setup.verdicts.folder / "summary.json").write_text(text)
        assert "labels: " not in dry_run(config, world / "run"), stale

    write_config(config, setup.run, setup.facts(), world / "run")
    stored = json.loads((world / "run" / "config.json").read_text())
    card = model_card(world / "run", stored["config"], 3)
    assert f"5 questions, 1 of them with a pair of branches, {pairs} pairs" in card
    assert "* judge: `mine`" in card and "* digest: `digest of mine`" in card
    config.objective.lambda_exp = 0.0
    setup = make_setup(config, world / "run")
    assert setup.verdicts is None and "verdicts" not in setup.run
    write_config(config, setup.run, setup.facts(), world / "sft")
    assert "nothing is compared (objective.lambda_exp=0)" in dry_run(config, world / "none")
    assert "5 questions; no branch was compared" in model_card(world / "sft", stored["config"], 3)
