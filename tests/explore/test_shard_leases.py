"""srpo_jax/explore/shard_leases.py: whose death can be told from here."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from srpo_jax.errors import UserError
from srpo_jax.explore import shard_leases
from srpo_jax.explore.shard_leases import ShardLeases
from srpo_jax.owners import Watch, identity


def test_a_pid_means_nothing_in_another_container(tmp_path):
    """A lease of another pid namespace on this host: its pid is nobody here, and yet it is held
    until its time is over. In this namespace the same lease is void at once.
    """
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    me = identity()
    owner = {**me, "pid": dead.pid, "token": "t"}
    with ShardLeases(tmp_path / "c", lease_seconds=60) as mine:
        assert mine.take(["x"]) == "x"
        mine.release("x")
        path = tmp_path / "c" / "x.claim"
        path.write_text(json.dumps({**owner, "pids": me["pids"] + "1"}))
        assert mine.take(["x"]) is None
        path.write_text(json.dumps(owner))
        assert mine.take(["x"]) == "x"


def test_nothing_keeps_a_shard_for_ever(tmp_path, monkeypatch):
    """A folder or a pipe of that name: void once it stood still for as long as a lease lasts, by
    this worker's clock, and for a quarter of that with a time in the future; what was touched
    meanwhile is not.
    """
    now = [1000.0]
    monkeypatch.setattr(shard_leases, "Watch", lambda: Watch(lambda: now[0]))
    folder = tmp_path / "c"
    path = folder / "x.claim"

    def foreign():
        path.write_text(json.dumps({**identity(), "host": "elsewhere"}))

    for make in (foreign, path.mkdir, lambda: os.mkfifo(path)):
        for stands, after in ((time.time() + 1e6, 15), (time.time(), 60)):
            folder.mkdir()
            make()
            os.utime(path, (stands, stands))
            with ShardLeases(folder, lease_seconds=60) as mine:
                assert mine.take(["x"]) is None
                now[0] += after - 1
                os.utime(path, (stands + 1, stands + 1))
                assert mine.take(["x"]) is None
                now[0] += after - 1
                assert mine.take(["x"]) is None, f"touched {after - 1} s ago"
                now[0] += 2
                assert mine.take(["x"]) == "x"
            assert not folder.exists()


def test_a_file_in_the_place_of_the_leases_is_one_line(tmp_path):
    """Nobody put it there on purpose, and nothing can be shared out."""
    (tmp_path / "c").touch()
    with ShardLeases(tmp_path / "c") as mine, pytest.raises(UserError, match="is a file"):
        mine.take(["x"])


def test_a_server_that_forgets_ends_no_worker(tmp_path, monkeypatch):
    """ESTALE, from looking at another's lease or from giving the own one back."""
    stale = OSError(errno.ESTALE, "Stale file handle")
    with ShardLeases(tmp_path / "c") as a, ShardLeases(tmp_path / "c") as b:
        assert a.take(["x"]) == "x"

        def fail(*_, **__):
            raise stale

        with monkeypatch.context() as patched:
            patched.setattr(b, "_now", fail)
            assert b.take(["x"]) is None
            patched.setattr(pathlib.Path, "unlink", fail)
            a.release("x")
