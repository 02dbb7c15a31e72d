"""srpo_jax/distributed/peers.py: who is missing is said, and so is who is waited for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from srpo_jax.distributed import lifecycle, peers
from srpo_jax.distributed.peers import Meeting, Peers
from srpo_jax.distributed.process_info import ProcessInfo
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.launch.local import free_port
from tests.support import ROOT, SUPPORT


class Store(dict):
    """jax's key-value store, as far as it is used."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_delete(self, key):
        self.pop(key, None)

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.items() if key.startswith(prefix)]


def test_all_say_who_is_silent_and_who_is_back(capsys):
    """Once each, before jax ends the run; who speaks on is not named."""
    store, now = Store(), [0.0]
    three = [Peers(store, i, quiet=10, limit=30, clock=lambda: now[0]) for i in range(3)]

    def pass_seconds(n, *speaking):
        for _ in range(n):
            now[0] += 1
            for i in speaking:
                three[i].look()
        return capsys.readouterr().err.splitlines()

    assert pass_seconds(20, 0, 1, 2) == []
    assert pass_seconds(10, 0, 2) == []
    said = pass_seconds(15, 0, 2)
    end = f"process 1 (pid {os.getpid()} on {socket.gethostname()}) for 11 s: killed, stopped or"
    assert [line[: line.index(" cut off")] for line in said] == [
        f"process {i}: nothing was heard of {end}" for i in (0, 2)
    ]
    back = pass_seconds(20, 1, 0, 2)
    assert back == [f"process {i}: process 1 is heard again" for i in (0, 2)]
    assert three[0].coordinator_is_silent() == three[2].coordinator_is_silent() == 0
    now[0] += 11
    assert three[2].coordinator_is_silent() == 11 and three[0].coordinator_is_silent() == 0


def test_waiting_for_the_others_is_said_and_ends_in_one_line(capsys, monkeypatch):
    """Nothing of it when they come at once."""
    monkeypatch.setattr(peers, "WAIT_SECONDS", 0.05)
    ended = threading.Event()
    with Meeting("process 1", "process 0 at h:1", 60, lambda code: None):
        pass
    assert capsys.readouterr().err == ""
    with Meeting("process 1", "process 0 at h:1", 0.2, lambda code: code == 1 and ended.set()):
        assert ended.wait(20)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "process 1 waits for process 0 at h:1: 0 s of 0.2"
    assert last.startswith("process 1 stops: process 0 at h:1 did not come within 0.2 s; look")


def test_a_port_that_is_taken_is_one_line():
    """Told before jax writes a page; the line has what to do."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(RunFailure, match=f"port {port} of {host} .Address already in use"):
                lifecycle._initialise(ProcessInfo("explicit", 2, 0, f"{host}:{port}"), 0)
    lifecycle._check_port(ProcessInfo("explicit", 2, 0, f"127.0.0.1:{free_port()}"))
    with pytest.raises(UserError, match="end at 65535"):
        lifecycle._check_port(ProcessInfo("explicit", 2, 0, "127.0.0.1:99999"))


@pytest.mark.multi_device
@pytest.mark.parametrize(
    "what, lost, said",
    [
        ("kill", 1, "process 0: nothing was heard of process 1 (pid PID on "),
        pytest.param(
            "stop", 1, "process 0: nothing was heard of process 1 (pid ", marks=pytest.mark.slow
        ),
        pytest.param(
            "stop first", 0, "process 1: process 0 has not answered for ", marks=pytest.mark.slow
        ),
    ],
)
def test_a_lost_process_is_named_before_jax_ends_the_rest(what, lost, said):
    """Killed or stopped, so that it can say nothing itself."""
    port, script = free_port(), SUPPORT / "processes_run.py"
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), SRPO_NUM_PROCESSES="2")
    children = [
        subprocess.Popen(
            [sys.executable, script, what],
            text=True,
            env={**env, "SRPO_COORDINATOR": f"127.0.0.1:{port}", "SRPO_PROCESS_ID": str(index)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]
    try:
        err = children[1 - lost].communicate(timeout=120)[1]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert children[1 - lost].returncode in (-signal.SIGABRT, 1), err[-2000:]
    expected = said.replace("PID", str(children[lost].pid))
    assert err.index(expected) < err.find("Terminating process") or "Terminating" not in err, err
