"""srpo_jax/explore/shard_leases.py: who holds a shard, from outside: workers, files and time."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from srpo_jax.explore import shard_leases
from srpo_jax.explore.shard_leases import ShardLeases
from srpo_jax.owners import Watch
from tests.support import ROOT

ELSEWHERE = {"host": "elsewhere", "boot": "", "pids": "", "pid": 1, "started": "1", "token": "t"}
HOLD = """
import os, sys
from srpo_jax.explore.shard_leases import ShardLeases
leases = ShardLeases(sys.argv[1]).__enter__()
assert leases.take(["x"]) == "x"
print(flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_a_worker_that_died_holds_nothing(tmp_path):
    """Alive it does. Dead it does not, also while nobody has asked how it ended (a zombie has a
    pid), and when its pid is somebody else's; but the same pid on another host, before a boot or in
    another container of this host says nothing.
    """
    folder = tmp_path / "c"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    command = [sys.executable, "-c", HOLD, folder]
    holder = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    assert holder.stdin and holder.stdout and holder.stdout.readline()
    with ShardLeases(folder) as mine:
        lease = folder / "x.claim"
        text = lease.read_text()
        assert mine.take(["x"]) is None
        holder.stdin.close()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        assert mine.take(["x"]) == "x"
        mine.release("x")
        assert not lease.exists()

        dead = json.loads(text)
        lease.write_text(json.dumps({**dead, "pid": os.getpid()}))
        assert mine.take(["x"]) == "x"
        mine.release("x")
        for other in ("host", "boot", "pids"):
            lease.write_text(json.dumps({**dead, other: dead[other] + "1"}))
            assert mine.take(["x"]) is None
        lease.unlink()
    holder.stdout.close()
    holder.wait()


@pytest.mark.parametrize("text", [json.dumps(ELSEWHERE), "", "[1]"])
def test_a_lease_lasts_five_minutes(tmp_path, monkeypatch, text):
    """Of a worker of which nothing else is known, or that is about to write who it is: 4 minutes
    after the time on its lease it has the shard, 6 minutes after nobody has, nor before. But first
    it is watched for longer than a living one would not renew it, as its clock may be wrong.
    """
    now = [1000.0]
    monkeypatch.setattr(shard_leases, "Watch", lambda: Watch(lambda: now[0]))
    with ShardLeases(tmp_path / "c") as mine:
        assert mine.take(["y"]) == "y"
        path = tmp_path / "c" / "x.claim"
        for minutes, taken in ((-4, None), (4, None), (6, "x"), (-6, "x")):
            path.write_text(text)
            then = time.time() - 60 * minutes
            os.utime(path, (then, then))
            assert mine.take(["x"]) is None, "seen for the first time"
            now[0] += 31  # a living one would have renewed it by now
            os.utime(path, (then, then + 1))
            now[0] += 60
            assert mine.take(["x"]) is None, "renewed meanwhile"
            now[0] += 76
            assert mine.take(["x"]) == taken
            mine.release("x")


def test_a_lease_is_renewed_in_time(tmp_path):
    """Its file is touched again well before its time is over."""
    with ShardLeases(tmp_path / "a" / "c", lease_seconds=18) as mine:
        mine.take(["x"])
        path = tmp_path / "a" / "c" / "x.claim"
        os.utime(path, (1, 1))
        end = time.monotonic() + 6
        while path.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.02)
        assert path.stat().st_mtime > 1


def test_what_another_one_took_over_is_left_to_it(tmp_path):
    """Giving back a lease that became void meanwhile does not take it from who has it now."""
    with ShardLeases(tmp_path / "c") as mine:
        mine.take(["x"])
        path = tmp_path / "c" / "x.claim"
        path.write_text(json.dumps(ELSEWHERE))
        mine.release("x")
        assert json.loads(path.read_text()) == ELSEWHERE
        path.unlink()


@pytest.mark.parametrize("call", ["stat", "rename"])
def test_another_one_clears_a_void_lease_first(tmp_path, monkeypatch, call):
    """It is gone when this worker looks at it, or wants to move it away: no error."""
    path = tmp_path / "c" / "x.claim"
    real = getattr(pathlib.Path, call)

    def second(self, *args, **switches):
        if self == path:
            path.unlink(missing_ok=True)
        return real(self, *args, **switches)

    now = [1000.0]
    monkeypatch.setattr(shard_leases, "Watch", lambda: Watch(lambda: now[0]))
    with ShardLeases(tmp_path / "c") as mine:
        assert mine.take(["y"]) == "y"
        path.write_text(json.dumps(ELSEWHERE))
        os.utime(path, (1, 1))
        assert mine.take(["x"]) is None
        now[0] += 76
        with monkeypatch.context() as patched:
            patched.setattr(pathlib.Path, call, second)
            assert mine.take(["x"]) in ("x", None)
        assert mine.take(["x", "z"]) in ("x", "z")


def test_a_system_that_tells_nothing_of_processes(tmp_path, monkeypatch):
    """Without boot id and namespaces shards are shared out all the same."""

    def missing(*_, **__):
        raise FileNotFoundError

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "read_text", missing)
        patched.setattr(os, "readlink", missing)
        one, two = ShardLeases(tmp_path / "c"), ShardLeases(tmp_path / "c")
    with one, two:
        assert (one.take(["x"]), two.take(["x"])) == ("x", None)
