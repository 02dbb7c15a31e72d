"""srpo_jax/distributed/process_info.py, agreement.py and lifecycle.py: who is who, the check that
all agree, and the common end.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from srpo_jax.distributed import lifecycle as processes
from srpo_jax.distributed.process_info import ProcessInfo, detect_process
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.launch.local import free_port
from tests.support import ROOT, SUPPORT

SCRIPT = SUPPORT / "processes_run.py"
EXPLICIT = {"SRPO_COORDINATOR": "127.0.0.1:7000", "SRPO_PROCESS_ID": "1", "SRPO_NUM_PROCESSES": "2"}
SRUN = {
    "SLURM_JOB_ID": "5",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
}


def section(**changes):
    return ConfigDict({"coordinator": "", "index": -1, "count": 0, **changes})


def test_a_laptop_and_pathways_are_one_process():
    """Nothing set: nothing is started. Under Pathways nothing may be, whatever else is set."""
    assert detect_process(section(), {}) == ProcessInfo()
    assert detect_process(section(), {"JAX_PLATFORMS": "cpu"}, tpu_host=True) == ProcessInfo()
    proxy = {**EXPLICIT, **SRUN, "JAX_PLATFORMS": "proxy,cpu"}
    assert detect_process(section(), proxy, tpu_host=True) == ProcessInfo()


def test_explicit_addresses_go_before_clusters():
    """The variables, or the config's fields, or some of each; one process needs nothing more."""
    found = detect_process(section(), {**SRUN, **EXPLICIT}, tpu_host=True)
    assert found == ProcessInfo("explicit", 2, 1, "127.0.0.1:7000") and found.loopback
    mixed = detect_process(section(coordinator="[fe80::1]:80", count=3), {"SRPO_PROCESS_ID": "0"})
    assert mixed == ProcessInfo("explicit", 3, 0, "[fe80::1]:80") and not mixed.loopback
    assert (
        detect_process(section(), {**SRUN, "SRPO_NUM_PROCESSES": "1"}, tpu_host=True)
        == ProcessInfo()
    )


def test_slurm_gives_a_task_its_gpus():
    """One task a node: all its GPUs (jax alone takes one); several: jax's rule, or its own one."""
    assert detect_process(section(), SRUN) == ProcessInfo(
        "slurm", 2, 1, local_device_ids=tuple(range(8))
    )
    several = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
    assert detect_process(section(), several).local_device_ids is None
    assert detect_process(section(), {**several, "CUDA_VISIBLE_DEVICES": "3"}).local_device_ids == (
        0,
    )
    shell = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NODELIST"}
    assert detect_process(section(), shell) == ProcessInfo(), "a shell of salloc is no step of srun"


def test_tpu_hosts_are_left_to_jax():
    """With TPU chips jax asks the cluster, unless another platform is wanted."""
    for platforms in ("", "tpu", "tpu,cpu"):
        place = detect_process(section(), {"JAX_PLATFORMS": platforms}, tpu_host=True)
        assert place == ProcessInfo("tpu", 0, 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"SRPO_PROCESS_ID": None}, "not SRPO_PROCESS_ID"),
        ({"SRPO_NUM_PROCESSES": None, "SRPO_COORDINATOR": None}, "not SRPO_COORDINATOR"),
        ({"SRPO_PROCESS_ID": "2"}, "ids go from 0"),
        ({"SRPO_PROCESS_ID": "x"}, "must be a whole number"),
        ({"SRPO_COORDINATOR": "127.0.0.1"}, "must be HOST:PORT"),
    ],
)
def test_half_set_addresses_are_one_line(changes, said):
    """A process that guessed would wait for the others for minutes."""
    env = {name: value for name, value in {**EXPLICIT, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=said) as error:
        detect_process(section(), env)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["tpu", "slurm"])
@pytest.mark.parametrize(
    "raised, expected",
    [
        (ValueError("coordinator_address\nshould be defined."), UserError),
        (RuntimeError("Failed to recognize\ncoordinator address"), RunFailure),
        (ConnectionError("metadata"), RunFailure),
    ],
)
def test_a_cluster_that_does_not_answer_is_no_mistake_of_the_user(
    monkeypatch, kind, raised, expected
):
    """While a pool of nodes grows, names have no address: such a start is tried again (exit code
    1), one without a cluster is not (2). Both are one line.
    """

    def fail(**_):
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(expected, match=f"this {kind} cluster") as error:
        processes._initialise(ProcessInfo(kind, 2, 0), 0)
    assert "\n" not in str(error.value) and "SRPO_NUM_PROCESSES=1" in str(error.value)
    assert processes._exit_code(error.value) == (2 if expected is UserError else 1)


class Store:
    """A coordinator's store, as far as a lifeline asks it, where process 1 has told a failure."""

    def key_value_dir_get(self, prefix):
        return [(f"{prefix}first", json.dumps([1, 2, "UserError: no such picture"]))]

    def key_value_set(self, key, value):
        raise RuntimeError("ALREADY_EXISTS")

    def wait_at_barrier(self, name, milliseconds):
        pass


@pytest.mark.parametrize(
    "own, said",
    [
        ("XlaRuntimeError: Gloo: connection closed by peer", True),
        ("UserError: no such picture", False),
    ],
)
def test_an_echo_of_a_failure_ends_with_the_failures_exit_code(monkeypatch, capsys, own, said):
    """A collective that breaks before the thread has looked is no failure of this process: it says
    whose it was, once, unless all say the same line anyway.
    """
    codes = []
    monkeypatch.setattr(processes.distributed.global_state, "client", Store())
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(processes, "POLL_SECONDS", 1000.0)  # the thread is too late
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(processes.atexit, "register", lambda end, code: codes.append(code))
    lifeline = processes._Lifeline()
    lifeline.end_after_failure(1, own)
    lifeline._over.set()
    line = "process 0 stops, as process 1 failed: UserError: no such picture\n"
    assert codes == [2] and capsys.readouterr().err == line * said


def both(what: str, *, script: pathlib.Path = SCRIPT, timeout: float = 120) -> list[tuple]:
    """[(exit code, stdout, stderr)] of the script as process 0 and 1 of 2."""
    port = free_port()
    env = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="2", PJRT_NPROC="32")
    env |= {"PYTHONPATH": str(ROOT), "SRPO_NUM_PROCESSES": "2"}
    children = [
        subprocess.Popen(
            [sys.executable, script, what],
            text=True,
            env={**env, "SRPO_COORDINATOR": f"127.0.0.1:{port}", "SRPO_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]
    try:
        said = [child.communicate(timeout=timeout) for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, *texts) for child, texts in zip(children, said, strict=True)]


@pytest.mark.slow
@pytest.mark.multi_device
def test_a_workdir_that_is_not_one_for_all_stops_all(tmp_path):
    """Each host has a folder of that name, of its own: told before the first step, and not after
    the first save. What is seen late is waited for.
    """
    told = f"the file {tmp_path}/never that process 0 wrote is 'not there' on process 1 but 'there'"
    for code, out, err in both(f"file {tmp_path}"):
        assert code == 2 and "late is there" in out and "never is there" not in out
        assert told in err and err.count("\n") < 8


@pytest.mark.multi_device
def test_what_differs_stops_all_with_the_same_line():
    """Another config on one host is told on every host before anything is computed: exit code 2."""
    lines = []
    for code, out, err in both("config"):
        assert code == 2, err[-2000:]
        assert out == ""
        lines += [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert "config.train.steps is 7 on process 1 but 100 on process 0" in lines[0]


@pytest.mark.multi_device
@pytest.mark.parametrize("what, code", [("error", 2), ("bug", 1)])
def test_a_failure_of_one_ends_all_with_its_exit_code(what, code):
    """Even when the other one waits in a collective, and when the failed one is the coordinator."""
    ended = both(what)
    healthy = 0 if what == "error" else 1
    failed = 1 - healthy
    assert ended[failed][0] == code, ended
    if what == "bug" and ended[healthy][0] == -signal.SIGABRT:
        return  # on a busy machine jax aborts the others before they hear that the coordinator went
    assert ended[healthy][0] == code, ended
    assert f"process {healthy} stops, as process {failed} failed: " in ended[healthy][2]


@pytest.mark.multi_device
def test_what_takes_long_is_computed_by_one_process():
    """The other one gets its value and computes nothing; where a glance tells that their files
    differ, both stop and that is said.
    """
    said = [
        [
            line
            for line in out.partition(" devices, ")[2].splitlines()[1:]
            # Gloo writes of its peers piece by piece, their number in the end.
            if "[Gloo]" not in line and not line.isdigit()
        ]
        for _, out, _ in both("once")
    ]
    value = json.dumps({"by": "0"})
    assert said == [["computed", value] * 2, [value] * 2]
    ended = both("once differs")
    assert [code for code, *_ in ended] == [2, 2], ended
    assert "error: the policy in x is not the same here and on process 0" in ended[1][2]
