"""Runs something in a forked process, which may be killed with SIGKILL at a moment of a test."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable


def forked(work: Callable[[], None]) -> int:
    """The process, which works and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """The exit code, or less a signal, of a process that was forked."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
