"""One worker of test_many_workers.py:
`python explore_worker.py WORLD WORKDIR doomed|survivor|mounted`; WORKDIR may be an address.

The doomed one kills itself, as a preempted machine would, in the middle of its first shard. The
survivor waits within its own first shard until that happened, or it could be done with all before
the other has started. Those on a mounted bucket see what others do late (faulty_place.py).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import time

from srpo_jax.buckets.workdir import open_workdir
from srpo_jax.explore import explore as run
from srpo_jax.explore import explorer
from tests.support.faulty_place import FaultyPlace
from tests.support.small_world import RecitingEngine, write_world

DYING = "dying"  # a file: the doomed worker is about to end
PATIENCE_SECONDS = 240.0


class Doomed(RecitingEngine):
    """SIGKILL at the first question. Nothing is compiled."""

    mark: pathlib.Path

    def _answer(self, request):
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Survivor(Doomed):
    """Recites when the doomed one is about to end."""

    def _answer(self, request):
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.mark.exists():
            if time.monotonic() > end:
                raise TimeoutError("the other worker never began")
            time.sleep(0.02)
        return RecitingEngine._answer(self, request)


def config_of(world: pathlib.Path):
    """Five records in three shards, two at a time; the world is written by whoever comes first."""
    config = write_world(world)
    config.explore.shards, config.explore.batch = 3, 2
    return config


def main(world: str, workdir: str, role: str) -> None:
    config = config_of(pathlib.Path(world))
    Doomed.mark = pathlib.Path(world).parent / DYING
    explorer.Engine = {"doomed": Doomed, "survivor": Survivor}.get(role, RecitingEngine)
    mounted = FaultyPlace(pathlib.Path(workdir), folders="refused", stale_seconds=2.0)
    with mounted() if role == "mounted" else contextlib.nullcontext():
        with open_workdir(workdir) as place:
            run.explore(config, place)


if __name__ == "__main__":
    main(*sys.argv[1:])
