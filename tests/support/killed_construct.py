"""`srpo data construct`, killed with SIGKILL again and again until one start comes to its end.

As a program: `python -m tests.support.killed_construct ARGV...` runs that command line in children,
each killed after a few of its writes: replies as they come, and whatever is renamed or flushed. It
prints how many were killed. A process of its own, as it forks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import openai  # noqa: F401  before the forks: it takes a second

from srpo_jax.cli import main as cli
from srpo_jax.cli.data import role_chat

AFTER = (3, 12, 8, 40)  # writes that a start may do


def main(argv: list[str]) -> None:
    kills = 0
    while _in_child(argv, AFTER[kills % len(AFTER)] + kills // len(AFTER)):
        kills += 1
    print(kills)


def _in_child(argv: list[str], writes: int) -> bool:
    """Whether it was killed, after so many writes."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.redirect_stdout(sys.stderr):
            _kill_after(writes)
            try:
                code = cli.main(argv)
            finally:
                sys.stderr.flush()
                os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("constructing failed")
    return False


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
