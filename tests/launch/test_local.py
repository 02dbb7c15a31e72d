"""Local processes: started, told, ended, started again; none is ever left behind."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest

from srpo_jax.errors import UserError
from srpo_jax.launch import local
from srpo_jax.launch.__main__ import main
from srpo_jax.launch.spec import Spec
from tests.support import ROOT


def python(code: str, **options) -> Spec:
    """A spec that runs `code` instead of srpo."""
    return Spec("local", ("unused",), program=(sys.executable, "-c", code), **options)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # gone, or reaped between open and read: ProcessLookupError
        return False
    return state != "Z"


def wait_until(done, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_it_prints_what_it_would_run_and_starts_nothing(capsys, monkeypatch):
    """The default is a dry run: a shell line per process, nothing else of the environment."""
    monkeypatch.setenv("MY_API_KEY", "hunter2-secret")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started something"))
    command = ["train", "--config=mine.py", "--workdir=a b"]
    assert main(["--processes=2", "--devices=4", "--", *command]) == 0
    out, _ = capsys.readouterr()
    for process, line in enumerate(out.splitlines()[:2]):
        words = shlex.split(line.removesuffix(" &"))
        assert words[0] == "env" and words[-3:] == command
        variables = {
            f"SRPO_PROCESS_ID={process}",
            "SRPO_NUM_PROCESSES=2",
            "SRPO_COORDINATOR=127.0.0.1:PORT",
            "JAX_NUM_CPU_DEVICES=4",
        }
        assert variables <= set(words)
    assert "hunter2" not in out


def test_one_process_runs_the_real_command_as_it_is():
    """Its devices are there, output has no prefix, and the exit code of a mistake comes back."""
    base = [
        sys.executable,
        "-m",
        "srpo_jax.launch",
        "--devices=4",
        "--restarts=3",
        "--submit",
        "--",
    ]
    options = {"capture_output": True, "text": True, "cwd": ROOT}
    # The number of devices wins over what the environment says.
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([*base, "env"], env=env, **options)
    assert done.returncode == 0 and "4 x cpu" in done.stdout
    done = subprocess.run([*base, "trian"], **options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


JOIN = """
import os, jax
address = os.environ["SRPO_COORDINATOR"]
jax.distributed.initialize(
    address, int(os.environ["SRPO_NUM_PROCESSES"]), int(os.environ["SRPO_PROCESS_ID"]))
port = f"{int(address.split(':')[1]):04X}"
places = []
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{table}").readlines()[1:]:
        where, state = line.split()[1], line.split()[3]
        if where.endswith(":" + port) and state == "0A":
            places.append(where.split(":")[0])
loopback = places and all(place.endswith("0100007F") for place in places)  # 127.0.0.1, or mapped
print("joined", jax.process_index(), jax.device_count(), jax.local_device_count(), loopback)
"""


@pytest.mark.multi_device
def test_processes_join_over_loopback(capfd):
    """jax joins with nothing but the variables; the coordinator listens on 127.0.0.1 only."""
    assert local.run(python(JOIN, processes=2, devices=3)) == 0
    out, err = capfd.readouterr()
    for process in (0, 1):
        assert f"[{process}] joined {process} 6 3 True" in out, out + err
    assert len(re.search(r"launch: start 0: pids (\d+ \d+), coordinator", err)[1].split()) == 2


def test_one_failure_ends_all(tmp_path, capfd):
    """The others get SIGTERM, then SIGKILL, and what they started too; the first code is ours."""
    code = f"""
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))  # and goes on
if os.environ["SRPO_PROCESS_ID"] == "1":
    while not pathlib.Path({str(tmp_path / "ready")!r}).exists():
        time.sleep(0.02)
    sys.exit(7)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "pids")!r}).write_text(f"{{os.getpid()}} {{worker.pid}}")
pathlib.Path({str(tmp_path / "ready")!r}).touch()
while True:
    time.sleep(0.02)
"""
    # The test lasts as long as the grace; in less a busy machine may not let it say "told".
    assert local.run(python(code, processes=2, grace=5)) == 7
    said = capfd.readouterr()
    assert "[0] told" in said.out
    assert "launch: process 1 ended with 7; ending the others\n" in said.err
    assert local._who_failed([None, -9, 0, 1]) == (
        "process 1 was ended by SIGKILL, process 3 ended with 1; ending the others"
    )
    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_all_are_started_again_after_a_failure(tmp_path, capfd):
    """Up to --restarts times, each time with another port; a mistake is not tried again."""
    code = f"""
import os, pathlib, signal
log = pathlib.Path({str(tmp_path)!r}) / os.environ["SRPO_PROCESS_ID"]
before = log.read_text().split() if log.exists() else []
log.write_text(" ".join(before + [os.environ["SRPO_COORDINATOR"]]))
if len(before) < 2 and os.environ["SRPO_PROCESS_ID"] == "0":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert local.run(python(code, processes=2, restarts=5, grace=30)) == 0
    ports = (tmp_path / "0").read_text().split()
    assert len(set(ports)) == 3 and (tmp_path / "1").exists()
    assert "ended with 137; restart 2 of 5" in capfd.readouterr().err
    assert local.run(python("import sys; sys.exit(2)", processes=2, restarts=5)) == 2
    assert "restart" not in capfd.readouterr().err


def test_a_free_port_is_not_the_kernels_own_nor_one_that_was_used(monkeypatch):
    """Nobody else gets it before it is listened on; what was used, or is taken, is not given."""
    port = local.free_port()
    assert 20000 <= port < 32000
    monkeypatch.setattr(local, "PORTS", [port])
    assert local.free_port({port}) != port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(local, "PORTS", [taken.getsockname()[1]])
        assert local.free_port() != taken.getsockname()[1]


def test_signals_reach_every_process(tmp_path):
    """SIGTERM to the launcher is SIGTERM to all, which stop in their own way; then it is over."""
    code = f"""
import os, pathlib, signal, sys, time
me = pathlib.Path({str(tmp_path)!r}) / os.environ["SRPO_PROCESS_ID"]
def stop(*_):
    me.write_text("stopped")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
me.touch()
while not all((me.parent / str(i)).exists() for i in range(2)):
    time.sleep(0.02)
if me.name == "0":
    os.kill({os.getpid()}, signal.SIGTERM)
time.sleep(600)
"""
    before = signal.getsignal(signal.SIGTERM)
    assert local.run(python(code, processes=2, restarts=9)) == 3
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["stopped"] * 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_nothing_is_left_when_the_launcher_is_killed(tmp_path):
    """SIGKILL to the launcher: it can pass nothing on, and its processes end all the same."""
    code = (
        "import os, pathlib, time; "
        f"place = pathlib.Path({str(tmp_path)!r}, os.environ['SRPO_PROCESS_ID']); "
        "place.write_text(str(os.getpid())); time.sleep(600)"
    )
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "srpo_jax.launch",
            "--processes=2",
            "--submit",
            f"--program={shlex.join([sys.executable, '-c', code])}",
            "--",
            "x",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(map(alive, pids)))


def test_a_program_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="cannot start /no/such/srpo"):
        local.run(Spec("local", ("env",), program=("/no/such/srpo",)))
