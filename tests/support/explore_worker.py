"""One worker of test_many_workers.py: `python explore_worker.py WORLD WORKDIR doomed|survivor`.

The doomed one kills itself, as a preempted machine would, in the middle of its first shard. The
survivor waits within its own first shard until that happened, or it could be done with all before
the other has started.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time

from srpo_jax.explore import explore as run
from srpo_jax.explore import explorer
from tests.support.small_world import ArithmeticArbiter, RecitingSampler, write_world

DYING = "dying"  # a file: the doomed worker is about to end
PATIENCE_SECONDS = 240.0


class Doomed(ArithmeticArbiter):
    """SIGKILL at the first question."""

    def __init__(self, mark: pathlib.Path):
        super().__init__()
        self.mark = mark

    def judge(self, cases):
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Survivor(Doomed):
    """Answers when the doomed one is about to end."""

    def judge(self, cases):
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.mark.exists():
            if time.monotonic() > end:
                raise TimeoutError("the other worker never began")
            time.sleep(0.02)
        return ArithmeticArbiter.judge(self, cases)


def config_of(world: pathlib.Path):
    """Five records in three shards; the world is written by whoever comes first."""
    config = write_world(world)
    config.explore.shards, config.explore.batch = 3, 1
    return config


def main(world: str, workdir: str, role: str) -> None:
    place = pathlib.Path(workdir)
    config = config_of(pathlib.Path(world))
    explorer.Sampler = RecitingSampler  # nothing to compile
    arbiter = {"doomed": Doomed, "survivor": Survivor}[role](pathlib.Path(world).parent / DYING)
    run.explore(config, place, arbiter=arbiter)


if __name__ == "__main__":
    main(*sys.argv[1:])
