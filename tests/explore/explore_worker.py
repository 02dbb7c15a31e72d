"""One worker of test_many_workers.py: `python explore_worker.py WORLD WORKDIR [SHARDS BEFORE KILL]`.

With a number it kills itself, as a preempted machine would, in the middle of the shard after.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

from data_pipelines.tree_records import shard_done
from srpo_jax.explore import run
from tests.explore.small_world import ArithmeticArbiter, RecitingSampler, write_world


class Doomed(ArithmeticArbiter):
    """Waits for its hour: SIGKILL when so many shards are done."""

    def __init__(self, workdir: pathlib.Path, after: int):
        super().__init__()
        self.workdir, self.after = workdir, after

    def judge(self, cases):
        done = sum(shard_done(path) for path in self.workdir.glob("trees/*.array_record"))
        if done >= self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().judge(cases)


def config_of(world: pathlib.Path):
    """Five records in three shards; the world is written by whoever comes first."""
    config = write_world(world)
    config.explore.shards, config.explore.batch = 3, 1
    return config


def main(world: str, workdir: str, after: str = "") -> None:
    place = pathlib.Path(workdir)
    config = config_of(pathlib.Path(world))
    run.Sampler = RecitingSampler  # nothing to compile
    arbiter = Doomed(place, int(after)) if after else ArithmeticArbiter()
    run.explore(config, place, arbiter=arbiter)


if __name__ == "__main__":
    main(*sys.argv[1:])
