"""Exploration by several workers that share nothing but a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from srpo_jax.explore import explore as run
from srpo_jax.explore import explorer, shard_leases
from srpo_jax.explore.shard_leases import ShardLeases
from srpo_jax.owners import Watch, read_holder
from tests.support import ROOT
from tests.support.bucket_server import serving
from tests.support.explore_worker import config_of
from tests.support.small_world import RecitingEngine


def tree_bytes(workdir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workdir / "trees").iterdir())}


def start_workers(tmp_path, shared, roles) -> list[subprocess.Popen]:
    """Of tests/support/explore_worker.py, all at once on the folder `shared`."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    env["SRPO_NUM_PROCESSES"] = str(len(roles))
    env["SRPO_COORDINATOR"] = "127.0.0.1:1"  # never used: workers do not meet
    command = [sys.executable, "-m", "tests.support.explore_worker"]
    pipes: dict = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [
        subprocess.Popen(
            [*command, tmp_path / f"world{index}", shared, role],
            env={**env, "SRPO_PROCESS_ID": str(index)},
            cwd=ROOT,
            **pipes,
        )
        for index, role in enumerate(roles)
    ]


@pytest.mark.slow
def test_three_workers_on_a_mounted_bucket(tmp_path, monkeypatch):
    """What one does the others see late, losers of a race are told at closing, folders cannot be
    renamed: every file is, byte for byte, that of one worker on a disk.
    """
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run.explore(config_of(tmp_path / "world"), alone)
    workers = start_workers(tmp_path, shared, ["mounted"] * 3)
    said = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    assert tree_bytes(shared) == tree_bytes(alone) and len(tree_bytes(alone)) == 12
    assert not (tmp_path / "shared" / "trees.claims").exists()


@pytest.mark.slow
def test_three_workers_on_a_bucket(tmp_path, monkeypatch):
    """One of them dies by SIGKILL with a shard begun: every object is, byte for byte, the file of
    one worker on a disk, and no claim is left.
    """
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run.explore(config_of(tmp_path / "world"), tmp_path / "alone")
    with serving({}) as bucket:
        roles = ["doomed", "survivor", "survivor"]
        workers = start_workers(tmp_path, "gs://bucket-a/run", roles)
        said = [worker.communicate(timeout=300) for worker in workers]
        assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0, 0], said
        wanted = tree_bytes(tmp_path / "alone")
        prefix = "bucket-a/run/trees/"
        found = {name.removeprefix(prefix): data for name, data in bucket.all(prefix).items()}
        assert found == wanted and len(wanted) == 12
        assert not [name for name in bucket.all() if name.endswith(".claim")]


def test_a_worker_is_killed_and_the_other_one_finishes(tmp_path, monkeypatch):
    """Two workers, one dies by SIGKILL with shards begun: every file is, byte for byte, that of one
    worker alone, and no lease is left.
    """
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    config = config_of(tmp_path / "world")
    workers = start_workers(tmp_path, shared, ["doomed", "survivor"])
    run.explore(config, alone)
    said = [worker.communicate(timeout=300) for worker in workers]
    assert workers[0].returncode == -signal.SIGKILL, said[0]
    assert workers[1].returncode == 0, said[1]
    assert tree_bytes(shared) == tree_bytes(alone) and len(tree_bytes(alone)) == 12
    assert not (tmp_path / "shared" / "trees.claims").exists()
    run.explore(config, shared)  # safe to run twice
    assert tree_bytes(shared) == tree_bytes(alone)


@pytest.fixture
def now(monkeypatch):
    """What the clock of those says that look on."""
    now = [1000.0]
    monkeypatch.setattr(shard_leases, "Watch", lambda: Watch(lambda: now[0]))
    return now


@pytest.fixture
def two(tmp_path, now):
    lease = 30  # seconds: a busy machine may stop this process for several
    with ShardLeases(tmp_path / "c", lease_seconds=lease) as a:
        with ShardLeases(tmp_path / "c", lease_seconds=lease) as b:
            yield a, b
    assert not (tmp_path / "c").exists(), "the last one takes the folder away"


def test_a_lease_is_one_workers_until_it_is_void(two, tmp_path, now):
    """Nobody takes what a living worker holds; the dead one's, or a silent host's, is free."""
    a, b = two
    assert a.take(["x", "y"]) == "x" and b.take(["x", "y"]) == "y" and b.take(["x"]) is None
    b.release("y")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "c" / "x.claim"
    owner = read_holder(path)
    path.write_text(json.dumps({**owner, "pid": dead.pid, "token": "t"}))
    assert b.take(["x"]) == "x", "its process is gone"
    b.release("x")

    a.release("x")  # or it would go on touching the file, after os.utime too
    path.write_text(json.dumps({**owner, "host": "elsewhere", "token": "t"}))
    assert a.take(["x"]) is None, "another host's, touched just now"
    old = time.time() - 60
    os.utime(path, (old, old))
    assert a.take(["x"]) is None, "its clock may be wrong"
    now[0] += 8
    assert a.take(["x"]) == "x", "nobody touched it for longer than the lease"
    path.write_text("")  # a lease that is being written
    assert b.take(["x"]) is None
    path.unlink()
