"""srpo_jax/explore/shard_leases.py: whose death can be told from here."""

from __future__ import annotations

import json
import subprocess
import sys

from srpo_jax.explore import shard_leases
from srpo_jax.explore.shard_leases import ShardLeases


def test_a_pid_means_nothing_in_another_container(tmp_path):
    """A lease of another pid namespace on this host: its pid is nobody here, and yet it is held
    until its time is over. In this namespace the same lease is void at once.
    """
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    me = shard_leases._identity()
    owner = {**me, "pid": dead.pid, "token": "t"}
    with ShardLeases(tmp_path / "c", lease_seconds=60) as mine:
        assert mine.take(["x"]) == "x"
        mine.release()
        path = tmp_path / "c" / "x.claim"
        path.write_text(json.dumps({**owner, "pids": me["pids"] + "1"}))
        assert mine.take(["x"]) is None
        path.write_text(json.dumps(owner))
        assert mine.take(["x"]) == "x"
