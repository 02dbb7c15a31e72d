"""Several workers share out the shards of one folder, with nothing between them but the folder.

A lease is a file that names the worker that makes a shard; while the worker lives, it renews the
lease by touching the file. A lease is void when its holder died on this machine, or when nobody
renewed it for LEASE_SECONDS. Leases only save work: two workers that make the same shard write the
same bytes, and each file appears whole or not at all, so no race here can harm a shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

LEASE_SECONDS = 300.0
SUFFIX = ".claim"  # of a lease's file


class ShardLeases:
    """The leases of one worker, which holds one at a time. It is used in a `with`, whose end gives
    back what the worker holds.

    folder: made when the first lease is taken; removed by whoever leaves it empty.
    lease_seconds: after this time without a renewal a lease is void.
    """

    def __init__(self, folder: str | os.PathLike, *, lease_seconds: float = LEASE_SECONDS):
        self._folder, self._lease_seconds = pathlib.Path(folder), lease_seconds
        self._me = {**_identity(), "token": secrets.token_hex(8)}
        self._held: pathlib.Path | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="leases", daemon=True)

    def __enter__(self) -> ShardLeases:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        self.release()
        with contextlib.suppress(OSError):  # not empty: others are at work
            self._folder.rmdir()

    def take(self, names: Iterable[str]) -> str | None:
        """Takes a lease on the first of `names` that is free, and returns that name; None when
        others hold all of them.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = self._folder / f"{name}{SUFFIX}"
            if self._create(path) or (self._clear_void(path) and self._create(path)):
                self._held = path
                return name
        return None

    def release(self) -> None:
        """Gives back the lease that is held, if one is."""
        held, self._held = self._held, None
        if held is not None and _read(held).get("token") == self._me["token"]:
            held.unlink(missing_ok=True)

    def _create(self, path: pathlib.Path) -> bool:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps(self._me))
        except (FileExistsError, FileNotFoundError):  # or another one just removed the folder
            return False
        return True

    def _clear_void(self, path: pathlib.Path) -> bool:
        """Whether a void lease was cleared away: moved first, as one of several workers can."""
        if not self._is_void(path):
            return False
        aside = path.with_name(f".{path.name}-{self._me['token']}")
        try:
            path.rename(aside)
            aside.unlink()
        except FileNotFoundError:
            return False
        return True

    def _is_void(self, path: pathlib.Path) -> bool:
        holder = _read(path)
        if holder and all(holder.get(key) == self._me[key] for key in ("host", "boot", "pids")):
            if holder.get("started") != _started(holder.get("pid", 0)):
                return True
        try:
            return self._now() - path.stat().st_mtime > self._lease_seconds
        except FileNotFoundError:
            return False

    def _now(self) -> float:
        """The time as the shared folder's server has it: clocks of hosts differ."""
        probe = self._folder / f".now-{self._me['token']}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _keep_renewing(self) -> None:
        while not self._over.wait(self._lease_seconds / 10):
            held = self._held
            if held is not None:
                with contextlib.suppress(OSError):  # taken over: then two make the same shard
                    os.utime(held)


def _identity() -> dict[str, Any]:
    """What names this process, such that another one can tell whether it is alive.

    pids: the namespace that the pid belongs to. Containers of one host may share its name and boot
    id, and the pid of one is nobody, or somebody else, in the other.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    try:
        pids = os.readlink("/proc/self/ns/pid")
    except OSError:
        pids = ""
    host, pid = socket.gethostname(), os.getpid()
    return {"host": host, "boot": boot, "pids": pids, "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str | None:
    """When the process `pid` of this machine began, in ticks since boot; None without one."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="ascii", errors="replace") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What a lease says of its holder; {} for a lease that is gone, or not written yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def pause(seconds: float = 1.0) -> None:
    """Waits between two looks at what other workers do."""
    time.sleep(seconds)
