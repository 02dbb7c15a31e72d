"""`srpo explore --from`: the policy is the newest checkpoint of a run."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.config.convert import as_config
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.errors import UserError
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import export, sampling_params
from srpo_jax.train.loop import train
from srpo_jax.train.setup import make_setup
from tests.support.small_world import RecitingEngine, write_world

RANKS = [pytest.param(0, marks=pytest.mark.slow), 4]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of the small world, for SFT at a rate that changes what the policy says."""
    config = write_world(tmp_path_factory.mktemp("world"))
    config.objective.lambda_exp = 0.0
    config.train.update(steps=2, learning_rate=0.1, warmup_steps=0, save_every=2)
    config.pack.rows = 2
    return config


@pytest.fixture(scope="module", params=RANKS, ids=["full", "lora"])
def run(request, config, tmp_path_factory):
    """The workdir of a run: all parameters, or adapters."""
    workdir = tmp_path_factory.mktemp("run")
    config.lora.rank = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "Engine", RecitingEngine)
        explore(config, workdir)
    train(config, workdir)
    return workdir


def tokens(folder):
    return [[b["tokens"] for b in tree["branches"]] for tree in read_shards(folder)]


def test_exploring_from_a_run_is_exploring_from_its_export(config, run, tmp_path):
    """The same tokens, from checkpoints of all parameters and from adapters alike, and others than
    those of the policy that the run began with; the digest of the trees is of what sampled them."""
    config = as_config(config)
    step, params = sampling_params(config, run)
    assert step == 2
    found = explore(config, tmp_path / "from_run", params=params)
    folder = export(run, tmp_path / "export")
    exported = explore(config, tmp_path / "from_export", model_dir=folder)
    before = explore(config, tmp_path / "before")
    assert tokens(found) == tokens(exported) != tokens(before)
    digests = {read_shards(f)[0]["provenance"]["policy_digest"] for f in (found, before)}
    assert len(digests) == 2
    with pytest.raises(UserError, match="policy_digest was"):
        explore(config, tmp_path / "before", params=params)


def test_a_folder_without_checkpoints_is_told(config, tmp_path):
    """It is one line that names the folder, before anything is sampled."""
    with pytest.raises(UserError, match="is no run: it has no checkpoints"):
        sampling_params(config, tmp_path)


def test_the_verb_has_the_option(config, run, tmp_path, monkeypatch, capsys):
    """`--from=WORKDIR` reaches the exploration, which says whose policy it is."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from srpo_jax.configs import common\n\n\ndef get_config():\n"
        "    config = common.get_config()\n"
        f"    config.model.path = {config.model.path!r}\n"
        f"    config.data.train_records = {config.data.train_records!r}\n"
        f"    config.data.test_records = {config.data.test_records!r}\n"
        "    config.arbiter.kind = 'ssui_mini'\n    config.explore.branches = 1\n"
        "    config.explore.max_new_tokens = 2\n    return config.lock()\n"
    )
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    out = tmp_path / "out"
    argv = [f"--config={file}", f"--workdir={out}", f"--from={run}"]
    assert cli.main(["explore", *argv]) == 0
    assert f"policy: checkpoint 2 of {run}" in capsys.readouterr().out
    digest = read_shards(out / "trees")[0]["provenance"]["policy_digest"]
    base = read_shards(run / "trees")[0]["provenance"]["policy_digest"]
    assert digest != base


def test_reference_paths_alone_train_as_trees_with_branches_do(config, tmp_path, monkeypatch):
    """`references_only` samples nothing; SFT has the same batches on these trees as on explored
    ones, and neither kind is mixed with the other."""
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    explore(config, tmp_path / "explored")

    def never(*args, **kwargs):
        raise AssertionError("sampled")

    monkeypatch.setattr(explorer, "Engine", never)
    explore(config, tmp_path / "alone", references_only=True)
    assert {len(tree["branches"]) for tree in read_shards(tmp_path / "alone" / "trees")} == {0}
    both = [make_setup(config, tmp_path / name).batches[0] for name in ("explored", "alone")]
    for name, values in both[0].items():
        np.testing.assert_array_equal(values, both[1][name], err_msg=name)
    with pytest.raises(UserError, match="made by another run"):
        explore(config, tmp_path / "explored", references_only=True)
