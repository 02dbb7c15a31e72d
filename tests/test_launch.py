"""The launcher: printed by default, one process, signals passed on, exit code returned."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from launch import local
from launch.__main__ import main
from launch.local import Local, render, run


def test_it_prints_what_it_would_run_and_starts_nothing(capsys, monkeypatch):
    """The default is a dry run: one shell line that does the same, nothing of the environment."""
    monkeypatch.setenv("MY_API_KEY", "hunter2-secret")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started something"))
    assert main(["--devices=8", "--", "train", "--config=c.py", "--workdir=a b"]) == 0
    out, _ = capsys.readouterr()
    words = shlex.split(out)
    assert words[:3] == ["env", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=8"]
    assert words[-3:] == ["train", "--config=c.py", "--workdir=a b"]
    assert "hunter2" not in out


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "no command"),
        (["train"], "stands behind --"),
        (["--processes=2", "--", "env"], "not supported yet"),
        (["--devices=0", "--", "env"], "at least 1"),
        (["--devices=x", "--", "env"], "invalid int"),
        (["--target=moon", "--", "env"], "there is local"),
        (["--dev=2", "--", "env"], "unknown argument"),
    ],
)
def test_mistakes_are_one_line(capsys, argv, said):
    """What cannot be launched is refused in one line with exit code 2."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_it_runs_on_virtual_devices_and_returns_the_exit_code():
    """--submit runs the real command: 4 devices are there, and a mistake's exit code comes back."""
    base = [sys.executable, "-m", "launch", "--devices=4", "--submit", "--"]
    done = subprocess.run([*base, "env"], capture_output=True, text=True)
    assert done.returncode == 0 and "4 x cpu" in done.stdout
    done = subprocess.run([*base, "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_signals_reach_the_command(monkeypatch, tmp_path):
    """SIGTERM to the launcher is SIGTERM to the command, which stops in its own way."""
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        f"import os; os.kill({os.getpid()}, signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(Local, "argv", lambda self: [sys.executable, "-c", code])
    before = signal.getsignal(signal.SIGTERM)
    assert run(Local(("env",))) == 7
    assert ready.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_killed_command_has_a_shells_exit_code(monkeypatch):
    """Ended by signal n: 128 + n, so that a restart loop can tell it from a mistake."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(Local, "argv", lambda self: [sys.executable, "-c", code])
    assert run(Local(("env",))) == 137
    assert local.FORWARDED and render(Local(("env",), devices=2)).startswith("env ")
