"""Decisions that all processes must make alike: one reads or fails, and all act on it.

All processes run the same program and meet in collectives. A process that alone raises, skips or
stops leaves the others waiting in the next one: if the file system fails process 3 while it
restores a checkpoint, the others go on to the first step and wait there for ever. So what a process
found out by itself is exchanged before anyone acts on it.

Each function here is a collective itself: all processes call it, at the same point of the program.
With one process they cost nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # no public way to the store of the coordinator
from jax.experimental import multihost_utils

from srpo_jax.errors import RunFailure, UserError, one_line

T = TypeVar("T")
_TEXT = 400  # bytes of a failure's text that the others see
_ASK_SECONDS = 60  # between two questions to the store
_said = itertools.count()  # the same number on all processes: they say and ask in one order


def broadcast_json(value: Any) -> Any:
    """Returns process 0's `value`, which must be JSON, on every process; others' is ignored."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode() if jax.process_index() == 0 else b""
    # Arrays in a collective have the same shape everywhere: first the length, then the bytes.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.frombuffer(data.ljust(size, b"\0"), np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def computed_once(compute: Callable[[], T], glance: Callable[[], str], what: str) -> T:
    """compute() of process 0, which must be JSON, on every process, however long it takes.

    For what is slow, and the same everywhere unless storage differs, which `glance`, quick, shows.
    Errors: UserError on a process whose glance differs.
    """
    if jax.process_count() == 1:
        return compute()
    mine = glance()
    theirs, value = as_first_says(lambda: (mine, compute()))
    if mine != theirs:
        raise UserError(f"{what} is not the same here and on process 0; give all the same files")
    return value


def as_first_says(find: Callable[[], T]) -> T:
    """Returns on every process what process 0 finds, which must be JSON; the others do not look.

    It goes through the coordinator's store and not through devices, so that process 0 may take any
    time to find it: a collective of CPUs gives it 30 s. Whoever waits ends with a run that fails.
    """
    if jax.process_count() == 1:
        return find()
    client: Any = distributed.global_state.client
    key = f"srpo/said/{next(_said)}"
    if jax.process_index() == 0:
        found = find()
        client.key_value_set(key, json.dumps(found))
        return found
    while True:
        try:
            return json.loads(client.blocking_key_value_get(key, _ASK_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def run_on_all(action: Callable[[], T], failed: Callable[[str], Exception]) -> T:
    """Runs action() on each process and returns its result; if it fails on any, all raise.

    failed: makes the exception that all raise, from one line about what went wrong (of several
    failures, that of the process with the lowest index).
    UserError, RunFailure, PermissionError and MemoryError are not exchanged: this process raises
    them as they are, and lifecycle.report_failure then ends the others.
    """
    result: Any = None
    problem, cause = "", None
    try:
        result = action()
    except (UserError, RunFailure, PermissionError, MemoryError):
        raise
    except Exception as error:
        problem, cause = in_short(error), error
    problem = _first_problem(problem)
    if problem:
        raise failed(problem) from cause
    return result


def in_short(error: BaseException) -> str:
    """The beginning of an exception's text on one line: orbax writes pages."""
    text = one_line(error, 160)
    return text if type(error).__name__ == "Damaged" else f"{type(error).__name__}: {text}"


def _first_problem(text: str) -> str:
    """The problem of the first process that has one, on all processes; "" if none has."""
    if jax.process_count() == 1:
        return text
    mine = np.frombuffer(text.encode()[:_TEXT].ljust(_TEXT, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(mine))
    texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]
    return next((each for each in texts if each), "")
