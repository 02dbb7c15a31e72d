"""`srpo data construct`, killed with SIGKILL again and again until one start comes to its end.

As a program: `python -m tests.support.killed_construct ARGV...` runs that command line in children,
each killed after a few of its writes: replies as they come, and whatever is renamed or flushed. It
prints how many were killed. A process of its own, as it forks.
"""

from __future__ import annotations

import os
import signal
import sys

import openai  # noqa: F401  before the forks: it takes a second

from srpo_jax.cli import main as cli
from srpo_jax.cli.data import role_chat
from tests.support.killed import killed_in_child

AFTER = (3, 12, 8, 40)  # writes that a start may do


def main(argv: list[str]) -> None:
    kills = 0
    while _in_child(argv, AFTER[kills % len(AFTER)] + kills // len(AFTER)):
        kills += 1
    print(kills)


def _in_child(argv: list[str], writes: int) -> bool:
    """Whether it was killed, after so many writes."""

    def run() -> int:
        _kill_after(writes)
        return cli.main(argv)

    return killed_in_child(run, "constructing failed")


def _kill_after(writes: int) -> None:
    left = writes

    def counted(function):
        def call(*args, **kwargs):
            nonlocal left
            found = function(*args, **kwargs)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    role_chat.Journal.put = counted(role_chat.Journal.put)


if __name__ == "__main__":
    main(sys.argv[1:])
