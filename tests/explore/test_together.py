"""A policy that several processes sample on one mesh, and how it is decided."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import read_shard, read_shards
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from tests.support import ROOT
from tests.support.small_world import write_world
from tests.support.together_run import config_of


def tokens(trees):
    return [(tree["id"], [branch["tokens"] for branch in tree["branches"]]) for tree in trees]


@pytest.mark.multi_device
def test_two_processes_sample_on_one_mesh(tmp_path, monkeypatch):
    """Two processes of two devices, weights split over `tensor`, explore and answer as one process
    with one device does: the same branches. One of them writes and talks.
    """
    world = tmp_path / "world"
    world.mkdir()
    write_world(world)
    config = config_of(world)
    explore(config, tmp_path / "alone")
    evaluate(config, tmp_path / "alone", "x")

    program = f"{sys.executable} -m tests.support.together_run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "srpo_jax.launch", "--processes=2", "--devices=2"),
            *(f"--program={program}", "--submit", "--", world, tmp_path / "two"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PJRT_NPROC": "32"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    for line in ("explore: 5/5 questions", "eval x: 5/5 questions", "sampling: compiling"):
        assert said.count(line) == (2 if "compiling" in line else 1), (line, said)
    found = [tokens(read_shards(tmp_path / name / "trees")) for name in ("two", "alone")]
    assert found[0] == found[1] and len({str(own) for _, own in found[0]}) == 5
    answers = [read_answers(tmp_path / name / "eval" / "x")[1] for name in ("two", "alone")]
    answered = [[tokens([tree]) for path in paths for tree in read_shard(path)] for paths in answers]
    assert answered[0] == answered[1] and len(answered[0]) == 5
    assert not list(tmp_path.rglob("*.claims"))
