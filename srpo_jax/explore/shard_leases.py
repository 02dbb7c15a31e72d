"""Several workers share out the shards of one folder, with nothing between them but the folder.

A lease is a file that names the worker that makes a shard; while the worker lives, it renews the
lease by touching the file. A lease is void when its holder died on this machine, or when nobody
renewed it for LEASE_SECONDS by the clock of a worker that looks on. One whose time is further away
than that, in the past or in the future, is void after a quarter of them: enough to see a living
worker renew it, whose clock may be wrong, as on a mounted bucket times are those of the hosts.
Leases only save work: two workers that make the same shard write the same bytes, and each file
appears whole or not at all, so no race here can harm a shard.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Iterable
from typing import Any

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.keepers import keeper_of
from srpo_jax.owners import (
    RACES,
    Watch,
    clear,
    create,
    give_up,
    identity,
    is_dead,
    read_holder,
    touch,
)

LEASE_SECONDS = 300.0
SUFFIX = ".claim"  # of a lease's file


class ShardLeases:
    """The leases of one worker, which may hold several. It is used in a `with`, whose end gives
    back what the worker holds. Leases may be taken in one thread and given back in another.

    folder: made when the first lease is taken; removed by whoever leaves it empty.
    lease_seconds: after this time without a renewal a lease is void.
    """

    def __init__(self, folder: str | os.PathLike, *, lease_seconds: float = LEASE_SECONDS):
        self._folder, self._lease_seconds = pathlib.Path(folder), lease_seconds
        self._me = identity()
        self._watch = Watch()
        self._held: dict[str, pathlib.Path] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="leases", daemon=True)

    def __enter__(self) -> ShardLeases:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # not empty: others are at work
            self._folder.rmdir()

    def take(self, names: Iterable[str]) -> str | None:
        """Takes a lease on the first of `names` that is free, and returns that name; None when
        others hold all of them. Errors: UserError when a file stands in the folder's place.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{self._folder} is to be a folder and is a file; remove it") from None
        for name in names:
            path = self._folder / f"{name}{SUFFIX}"
            if self._create(path) or (self._clear_void(path) and self._create(path)):
                self._held[name] = path
                return name
        return None

    def release(self, name: str) -> None:
        """Gives back the lease on `name`, if it is held."""
        held = self._held.pop(name, None)
        if held is not None:
            with contextlib.suppress(OSError, RunFailure, UserError):  # then it becomes void
                give_up(held, self._me)

    def _create(self, path: pathlib.Path) -> bool:
        return create(path, self._me)

    def _clear_void(self, path: pathlib.Path) -> bool:
        """Whether a void lease was cleared away, or what else stands in its place."""
        holder = read_holder(path)
        return self._is_void(path, holder) and clear(path, holder, self._me)

    def _is_void(self, path: pathlib.Path, holder: dict[str, Any]) -> bool:
        still = self._watch.seconds(path)
        if still > self._lease_seconds or is_dead(holder, self._me):
            return True
        if still <= self._lease_seconds / 4:  # less than three renewals
            return False
        if keeper_of(path):  # a bucket has generations, and no times that could be wrong
            return False
        try:
            return abs(self._now() - path.lstat().st_mtime) > self._lease_seconds
        except OSError as error:
            if error.errno in RACES:
                return False
            raise

    def _now(self) -> float:
        """The time as the shared folder's server has it: clocks of hosts differ."""
        probe = self._folder / f".now-{self._me['token']}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _keep_renewing(self) -> None:
        while not self._over.wait(self._lease_seconds / 10):
            for held in list(self._held.values()):
                # Taken over: then two make the same shard.
                with contextlib.suppress(OSError, RunFailure, UserError):
                    touch(held, self._me)


def pause(seconds: float = 1.0) -> None:
    """Waits between two looks at what other workers do."""
    time.sleep(seconds)
