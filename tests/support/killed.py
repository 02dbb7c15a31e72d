"""Runs something in a child process that kills itself with SIGKILL at a moment of a test."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable


def killed_in_child(run: Callable[[], int], why: str) -> bool:
    """Whether `run`, in a forked process with its stdout on stderr, was killed. `run` arranges that
    itself, and returns an exit code; SystemExit(why) when that is not 0.
    """
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.redirect_stdout(sys.stderr):
            try:
                code = run()
            finally:
                sys.stderr.flush()
                os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(why)
    return False
