"""Which of the processes of a run is missing: said before jax ends the others, whose own words name
nobody.

Each process counts up a number in the coordinator's store. Process 0 looks whose number stands
still, and writes that into the store too, so that all say it. Nothing is ended here: a process may
be busy, and is heard again. jax ends the run when its own heartbeats stay away.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ALIVE, SILENT = "srpo/alive/", "srpo/silent/"
WAIT_SECONDS = 30.0  # between two lines of a process that waits for the others


class Peers:
    """What one process knows of the others. `look` is to be called about once a second.

    client: of jax's store. quiet: seconds without a sign of life after which that is said, and
    limit: those after which jax ends the run.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        quiet: float,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._client, self._index, self._clock = client, index, clock
        self._quiet, self._limit = quiet, limit
        self._count = 0
        self._seen: dict[int, tuple[list, float]] = {}  # process: (what it wrote, since when)
        self._told: set[int] = set()
        self._heard = clock()

    def look(self) -> None:
        """Gives a sign of life, and says who gives none. Errors: those of the store."""
        self._count += 1
        me = json.dumps([socket.gethostname(), os.getpid(), self._count])
        self._client.key_value_set(f"{ALIVE}{self._index}", me, allow_overwrite=True)
        silent = self._find_silent() if self._index == 0 else self._read(SILENT)
        silent.pop(self._index, None)
        self._heard = self._clock()
        for process, (host, pid, seconds) in sorted(silent.items()):
            if process not in self._told:
                say(
                    f"process {self._index}: nothing was heard of process {process} (pid {pid} on "
                    f"{host}) for {seconds} s: killed, stopped or cut off? All end when it stays "
                    f"silent for about {self._limit:g} s"
                )
        for process in sorted(self._told - silent.keys()):
            say(f"process {self._index}: process {process} is heard again")
        self._told = set(silent)

    def coordinator_is_silent(self) -> float:
        """Seconds since process 0's store answered, 0 when that is not long ago."""
        spent = self._clock() - self._heard
        return spent if self._index and spent > self._quiet else 0.0

    def _find_silent(self) -> dict[int, list]:
        now, silent = self._clock(), {}
        for process, found in self._read(ALIVE).items():
            before, since = self._seen.get(process, (None, now))
            if before != found:
                self._seen[process] = found, now
            elif now - since > self._quiet:
                silent[process] = [*found[:2], round(now - since)]
        for process in silent.keys() - self._told:
            self._client.key_value_set(
                f"{SILENT}{process}", json.dumps(silent[process]), allow_overwrite=True
            )
        for process in self._told - silent.keys():
            self._client.key_value_delete(f"{SILENT}{process}")
        return silent

    def _read(self, prefix: str) -> dict[int, list]:
        rows = self._client.key_value_dir_get(prefix)
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in rows}


class Meeting:
    """In a `with`, while jax waits for all processes to come: says so at times, and ends the
    process with one line and exit code 1 after `limit` seconds, as jax would with a page of C++.

    who: of the line, "process 1". whom: that it waits for.
    """

    def __init__(self, who: str, whom: str, limit: float, end: Callable[[int], Any]):
        self._who, self._whom, self._limit, self._end = who, whom, limit, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="meeting", daemon=True)

    def __enter__(self) -> Meeting:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _wait(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(min(WAIT_SECONDS, self._limit)):
            spent = time.monotonic() - begin
            if spent < self._limit:
                say(f"{self._who} waits for {self._whom}: {spent:.0f} s of {self._limit:g}")
                continue
            say(
                f"{self._who} stops: {self._whom} did not come within {self._limit:g} s; look there"
                " whether it runs, and whether something else listens on that port"
            )
            self._end(1)
            return


def say(line: str) -> None:
    """A line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)
