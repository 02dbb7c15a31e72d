"""One of two processes of test_lifecycle.py: `processes_run.py WHAT`, told which by SRPO_*."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from srpo_jax.configs import common
from srpo_jax.distributed import lifecycle
from srpo_jax.distributed.agreement import computed_once
from srpo_jax.distributed.lifecycle import agree, distributed_session
from srpo_jax.errors import UserError


def once(second: bool, what: str) -> dict:
    """What process 0 computed, of files that process 1 may have others of."""

    def compute() -> dict:
        print("computed")
        return {"by": os.environ["SRPO_PROCESS_ID"]}

    glance = "other" if second and what == "once differs" else "same"
    return computed_once(compute, lambda: glance, "the policy in x")


def one_file(folder: pathlib.Path, second: bool) -> None:
    """Process 1 sees the first file late, and the second never."""
    lifecycle.SEEN_SECONDS = 5
    for name, wait in (("late", 1.0), ("never", 99.0)):
        born = time.monotonic() + wait
        if not second:
            (folder / name).write_text(name)

        def read(path: pathlib.Path, born: float = born) -> str:
            seen = path.exists() and not (second and time.monotonic() < born)
            return path.read_text() if seen else ""

        lifecycle.agree_on_file(folder / name, read)
        print(f"{name} is there")


def main(what: str) -> int:
    config = common.get_config()
    second = os.environ["SRPO_PROCESS_ID"] == "1"
    config.processes.heartbeat_seconds = 6 if what in ("kill", "stop", "stop first") else 0
    if what == "config" and second:
        config.train.steps = 7
    try:
        with distributed_session(config.processes, config):
            total = multihost_utils.process_allgather(np.ones(1)).sum()
            print(f"{jax.process_count()} processes, {jax.device_count()} devices, {total}")
            agree("data", {"trees": "ab"})
            if what in ("once", "once differs"):
                for _ in range(2):
                    print(json.dumps(once(second, what)))
            if what.startswith("file "):
                one_file(pathlib.Path(what.removeprefix("file ")), second)
            if what == "error" and second:
                raise UserError("no such picture")
            if what in ("error", "once differs"):
                multihost_utils.sync_global_devices("the other one never comes")
            if what == "bug" and not second:
                raise RuntimeError("a bug")
            if what == "bug":
                time.sleep(60)
            if what in ("kill", "stop") and second:
                os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGSTOP)
            if what == "stop first" and not second:
                os.kill(os.getpid(), signal.SIGSTOP)
            if what in ("kill", "stop", "stop first"):
                time.sleep(60)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
