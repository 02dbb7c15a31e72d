"""srpo_jax/dry_run.py and prepare.py: what is known before a run begins, with nothing written."""

from __future__ import annotations

import collections
import re
import shutil

import pytest
from test_train import make_config, tree_record
from tiny import tiny_qwen2_5_vl

from data_pipelines.tree_records import shard_path, write_shard
from srpo_jax.dry_run import dry_run
from srpo_jax.errors import UserError
from srpo_jax.prepare import counts, prepare
from srpo_jax.run_identity import write_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    tiny_qwen2_5_vl(folder / "model")
    write_shard(shard_path(folder / "trees", 0, 1), [tree_record(i) for i in range(9)])
    return folder


def everything_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_it_tells_sizes_and_writes_nothing(world, tmp_path):
    """Bytes per device are float32 weights and two moments; the disk is as it was, and no workdir
    was made.
    """
    before = everything_in(world)
    said = dry_run(make_config(world), tmp_path / "new" / "run")
    assert everything_in(world) == before and not list(tmp_path.iterdir())
    trained, total = counts(prepare(make_config(world), tmp_path))
    assert trained == total and f"parameters: {total} trained of {total}" in said
    assert f"parameters {4 * total / 1e6:.1f} MB, optimizer {8 * total / 1e6:.1f} MB" in said
    assert "9 questions" in said and "6 steps are" in said and "a new run" in said
    config = make_config(world)
    config.lora.rank = 2
    assert re.search(r"frozen policy \d", dry_run(config, tmp_path / "run"))


def test_what_would_end_the_run_ends_the_dry_run(world, tmp_path, monkeypatch):
    """Another run's workdir, missing trees, a mesh that does not fit, a disk that is too small."""
    config = make_config(world)
    (tmp_path / "old" / "checkpoints" / "3").mkdir(parents=True)
    write_config(config, prepare(config, tmp_path).run, tmp_path / "old")
    assert "goes on from step 3" in dry_run(config, tmp_path / "old")
    other = make_config(world, learning_rate=1e-4)
    with pytest.raises(UserError, match="another run.*learning_rate"):
        dry_run(other, tmp_path / "old")
    other = make_config(world)
    other.data.trees = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="srpo explore"):
        dry_run(other, tmp_path)
    other = make_config(world)
    other.mesh.tensor = 3
    with pytest.raises(UserError, match="mesh data="):
        dry_run(other, tmp_path)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5, 5))
    with pytest.raises(UserError, match="a checkpoint takes"):
        dry_run(config, tmp_path)
