"""Checkpoints of several processes: what one of them sees or fails at, all of them act on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from srpo_jax.train.checkpoint.seal import tell_states as look
from tests.support import ROOT, SUPPORT

SCRIPT = SUPPORT / "checkpoint_run.py"
pytestmark = pytest.mark.multi_device


def run(folder, processes: int, devices: int, mesh: str, *what: str) -> tuple[dict, str]:
    """What every process of checkpoint_run.py found, which must be the same, and what was said."""
    env = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES=str(devices),
        PJRT_NPROC="32",  # threads: on few cores the devices could wait for each other's
        PYTHONPATH=str(ROOT),
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, str(folder), str(processes), mesh, *what],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == processes and len(set(lines)) == 1, done.stdout[-3000:]
    found = json.loads(lines[0])
    assert found["devices"] == [processes, devices]
    return found, done.stdout


def test_one_state_on_any_number_of_processes_and_any_mesh(tmp_path):
    """Processes x devices: saved by 4x2, restored and saved by 8x1, by 2x4, restored by 1x8, on
    other meshes each time: identical checksums of every array, and every step is good.
    """
    folder = tmp_path / "c"
    run(folder, 4, 2, "1,4,2", "save:1")
    sums = []
    for step, (processes, devices, mesh) in enumerate(
        [(8, 1, "1,8,1"), (2, 4, "2,2,2"), (1, 8, "1,2,4")], start=1
    ):
        found, _ = run(folder, processes, devices, mesh, "restore", f"save:{step + 1}")
        assert found["step"] == step and found["skipped"] == []
        sums.append(found["sums"])
    assert sums[0] == sums[1] == sums[2]
    assert len({fact[2] for fact in sums[0].values()}) == len(sums[0]) == 5
    assert look(folder) == 0
    for number in range(2):  # of the last save: each hashed what it wrote, and only that
        lines = (tmp_path / f"hashed.{number}").read_text().splitlines()
        owners = {line.partition("/ocdbt.process_")[2].partition("/")[0] for line in lines}
        assert owners - {""} == {str(number)} and (number == 0 or "" not in owners)


def test_all_processes_skip_what_one_of_them_finds_damaged(tmp_path):
    """A flipped bit is read by one process only: both skip the step and name it, move it aside, go
    back to the same older one, and can save the step again.
    """
    folder = tmp_path / "c"
    what = ("save:1", "save:2", "spoil:2", "restore", "save:2")
    found, said = run(folder, 2, 4, "1,4,2", *what)
    assert found["step"] == 1
    [(step, reason)] = found["skipped"]
    assert step == 2 and reason.endswith("is not what was saved")
    assert said.count(f"checkpoint {folder / '2'} skipped: {reason}") == 1
    assert (folder.with_name("c-damaged") / "2.0").is_dir()
    assert look(folder) == 0


def test_a_full_disk_stops_all_processes_at_the_same_step(small_disk):  # noqa: F811
    """Told before a byte is written, by all; the last good step restores."""
    folder = small_disk / "c"
    found, _ = run(folder, 2, 4, "1,4,2", "fill", "restore")
    assert found["errno"] == errno.ENOSPC and found["step"] == found["tried"] - 1 >= 1
    assert look(folder) == 0


@pytest.mark.slow
def test_processes_that_save_into_a_bucket(bucket):
    """2 processes x 4 devices save and restore, and all skip what is damaged; 1 x 8 on another mesh
    restore the same checksums.
    """
    folder = bucket.address
    found, said = run(folder, 2, 4, "2,2,2", "save:1", "save:2", "spoil:2", "restore", "save:2")
    assert found["step"] == 1
    [(step, reason)] = found["skipped"]
    assert step == 2 and reason.endswith("is not what was saved")
    assert said.count(f"checkpoint {folder}/2 skipped: {reason}") == 1
    assert bucket.aside() == {"2.0"} and bucket.steps() == {"1", "2"}
    assert {name.split("/")[2] for name in bucket.files() if "/ocdbt.process_" in name} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    assert look(folder) == 0
    again, _ = run(folder, 1, 8, "1,2,4", "restore")
    assert again["step"] == 2 and again["sums"] == found["sums"]
