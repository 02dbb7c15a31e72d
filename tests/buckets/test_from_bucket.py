"""A policy, records and judged trees that lie in a bucket: the same bytes as from folders."""

from __future__ import annotations

import pathlib

import pytest

from srpo_jax.buckets import fetch
from srpo_jax.config.convert import as_config
from srpo_jax.errors import UserError
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.judge.judge import judge
from srpo_jax.runs.workdir import record_folders, trees_folder
from srpo_jax.train.setup import make_setup
from tests.explore.test_many_workers import tree_bytes
from tests.support.bucket_server import serving
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, write_world


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetch.forget()


def objects_of(folder: pathlib.Path, under: str) -> dict[str, bytes]:
    """As an upload of the folder would make them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f"{under}/{path.relative_to(folder)}": path.read_bytes() for path in files}


@pytest.mark.slow
def test_explore_and_train_from_a_bucket(tmp_path, monkeypatch, capsys):
    """Trees are byte for byte those of local files, and what identifies the run is the same: a run
    may go on with the one or the other.
    """
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    config = write_world(tmp_path / "world")
    config.objective.pairing, config.pack.rows, config.mesh.fsdp = "one", 2, 1
    config.explore.branches = 12
    explore(config, tmp_path / "local")
    explored = tree_bytes(tmp_path / "local")
    judge(config, tmp_path / "local", arbiter=ArithmeticArbiter())
    here = make_setup(config, tmp_path / "local")

    objects = objects_of(tmp_path / "world", "bucket-a/world")
    objects |= objects_of(tmp_path / "local", "bucket-a/run")
    with serving(objects) as bucket:
        config.model.path = "gs://bucket-a/world/model"
        config.data.train_records = config.data.test_records = "gs://bucket-a/world/records.jsonl"
        explore(config, tmp_path / "fetched")
        found = tree_bytes(tmp_path / "fetched")
        assert [n for n in explored.keys() | found if explored.get(n) != found.get(n)] == []
        config.data.trees = "gs://bucket-a/run/trees"
        bucket.read.clear()
        there = make_setup(config, tmp_path / "elsewhere")
        assert there.run == here.run and there.facts() == here.facts()
        assert not [name for name in bucket.read if "/model/" in name], "it was fetched before"
        with pytest.raises(UserError, match="verdicts are written beside the trees, and a bucket"):
            judge(config, tmp_path / "elsewhere", arbiter=ArithmeticArbiter())
    stored = as_config(config).to_dict()
    assert stored["model"]["path"].startswith("gs://")
    shown = trees_folder(tmp_path / "elsewhere", stored)
    assert shown is not None and explored.keys() <= tree_bytes(shown.parent).keys()
    assert (record_folders(tmp_path / "elsewhere", stored)[0] / "images" / "0.png").is_file()
