"""A policy that several processes sample on one mesh, and how it is decided."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import read_shard, read_shards
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore import workers
from srpo_jax.explore.explore import explore
from srpo_jax.explore.workers import exploring_session, find_worker
from srpo_jax.export.export import sampling_params
from srpo_jax.train.loop import train
from tests.support import ROOT
from tests.support.small_world import write_world
from tests.support.together_run import config_of

TRAINED = {
    "mesh.fsdp": -1,
    "pack.row_tokens": 0,
    "pack.rows": 2,
    "objective.lambda_exp": 0.0,
    "train.steps": 1,
    "train.learning_rate": 0.1,
    "train.warmup_steps": 0,
}


def tokens(trees):
    return [(tree["id"], [branch["tokens"] for branch in tree["branches"]]) for tree in trees]


@pytest.mark.multi_device
@pytest.mark.parametrize(
    "trained", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["base", "from_run"]
)
def test_two_processes_sample_on_one_mesh(tmp_path, trained):
    """Two processes of two devices, weights split over `tensor`, explore and answer as one process
    with one device does: the same branches, also from the checkpoint of a run that one device made.
    One of them writes and talks.
    """
    world = tmp_path / "world"
    world.mkdir()
    write_world(world)
    config, run, params = config_of(world), [], None
    if trained:
        run = [tmp_path / "run"]
        explore(config, *run, references_only=True)
        train(config_of(world, **TRAINED), *run)
        params = sampling_params(config, *run)[1]
    explore(config, tmp_path / "alone", params=params)
    evaluate(config, tmp_path / "alone", "x", params=params)

    program = f"{sys.executable} -m tests.support.together_run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "srpo_jax.launch", "--processes=2", "--devices=2"),
            *(f"--program={program}", "--submit", "--", world, tmp_path / "two", *run),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PJRT_NPROC": "32"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    for line in ("explore: 5/5 questions", "eval x: 5/5 questions", "sampling (decode): compiling"):
        assert said.count(line) == (2 if "compiling" in line else 1), (line, said)
    found = [tokens(read_shards(tmp_path / name / "trees")) for name in ("two", "alone")]
    assert found[0] == found[1] and len({str(own) for _, own in found[0]}) == 5
    answers = [read_answers(tmp_path / name / "eval" / "x")[1] for name in ("two", "alone")]
    answered = [
        [tokens([tree]) for path in paths for tree in read_shard(path)] for paths in answers
    ]
    assert answered[0] == answered[1] and len(answered[0]) == 5
    assert not list(tmp_path.rglob("*.claims"))


def test_a_task_of_a_slurm_node_takes_its_own_gpu(monkeypatch):
    """Workers that do not meet take the GPUs that they would take if they met: the one numbered
    like the task, or all that Slurm gave it."""
    taken = []
    monkeypatch.setattr(workers.jax.config, "update", lambda *each: taken.append(each))
    monkeypatch.setattr(workers, "works_alone", lambda *_: True)
    monkeypatch.setattr(workers, "load_model_config", lambda *_: None)
    step = {"JOB_ID": "1", "STEP_NODELIST": "n", "NTASKS": "16", "PROCID": "11", "LOCALID": "3"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2)")
    for visible in ("0,1,2,3,4,5,6,7", "5"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with exploring_session(Config()):
            worker = find_worker(Config().processes, together=False)
            assert (worker.index, worker.count) == (11, 16)
    assert taken == [("jax_cuda_visible_devices", "3"), ("jax_cuda_visible_devices", "0")]
