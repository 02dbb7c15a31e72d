"""Who is at work on a file of a folder that several machines may share, with nothing between them
but the folder: a small file names the holder, who touches it while he lives.

A holder that died is told from one that lives

    on this machine       by its process: its number, and when it began
    on another machine    by watching: what nobody touched for a while, by the looker's own clock,
                          is void. Clocks of two machines are never compared, so a time in the
                          future keeps nothing for ever.

Network file systems refuse the loser of a race in many ways, and some of them only when the file
is closed: RACES are all those ways.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Any

from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.keepers import GONE, Swap, keeper_of

BEAT_SECONDS = 10.0  # between two touches of an owner
SETTLE_SECONDS = 0.05  # for who was about to clear away the one before
STILL_SECONDS = 90.0  # network file systems may show what was true a minute ago
MAX_BYTES = 4096  # of such a file; whatever is longer is none
RACES = {
    errno.EEXIST,
    errno.ENOENT,  # another one just removed the folder
    errno.ESTALE,  # gcsfuse and NFS, at closing too
    errno.EBUSY,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
}


def identity() -> dict[str, Any]:
    """What names this process, such that another one can tell whether it is alive, with a token of
    its own.

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
    found = {"host": host, "boot": boot, "pids": pids, "pid": pid, "started": started(pid)}
    return {**found, "token": secrets.token_hex(8)}


def started(pid: Any) -> str | None:
    """When the process `pid` of this machine began, in ticks since boot; None without one."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="ascii", errors="replace") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return None if state in "ZX" else fields[18]


def is_here(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the holder is a process that this one could see, so that who is not seen is dead.
    Systems without /proc show none.
    """
    keys = ("host", "boot", "pids")
    return me["started"] is not None and all(holder.get(key, 0) == me[key] for key in keys)


def is_dead(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the holder is known to have ended."""
    return is_here(holder, me) and holder.get("started") != started(holder.get("pid"))


def read_holder(path: pathlib.Path) -> dict[str, Any]:
    """What a file says of its holder; {} for one that is gone, not written yet, or no such file."""
    return _look(path)[0]


def create(path: pathlib.Path, me: dict[str, Any]) -> bool:
    """Whether the file is there now and names this process: of several that try, one is told so.

    Errors: OSError for a disk that is full or may not be written.
    """
    if swap := _swap(path):
        swap.write(json.dumps(me).encode(), GONE)
        return read_holder(path).get("token") == me["token"]
    made = False
    try:
        with open(path, "x", encoding="utf-8") as file:
            made = True
            file.write(json.dumps(me))
    except OSError as error:
        if error.errno in RACES:
            return False
        if made:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return read_holder(path).get("token") == me["token"]


def clear(path: pathlib.Path, holder: dict[str, Any], me: dict[str, Any]) -> bool:
    """Removes the file of a holder that is dead or silent, and whatever else stands in its place.
    Moves it first, as one of several processes can; False for the others.
    """
    if swap := _swap(path):
        data, generation = swap.read()
        mine = _said(data).get("token") == holder.get("token")
        return data is not None and mine and swap.write(None, generation)
    aside = path.with_name(f".{path.name}-{me['token']}")
    if read_holder(path).get("token") != holder.get("token"):  # a faster process was here
        return False
    try:
        path.rename(aside)
        if read_holder(aside).get("token") != holder.get("token"):  # a new one, of a faster process
            with contextlib.suppress(OSError):
                _put_back(aside, path)
            aside.unlink()
            return False
        if stat.S_ISDIR(aside.lstat().st_mode):
            aside.rmdir()
        else:
            aside.unlink()
    except OSError as error:
        if error.errno in RACES:  # a folder that is not empty keeps the name that it was moved to
            return not path.exists() and aside.exists()
        raise
    return True


def _put_back(aside: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a file its name again unless another one has it; mounted buckets know no links."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:
        with open(path, "xb") as file:
            file.write(aside.read_bytes())


def touch(path: pathlib.Path, me: dict[str, Any]) -> None:
    """Shows that the holder lives, if that is this process. Errors: OSError."""
    if swap := _swap(path):
        data, generation = swap.read()
        if data is not None and _said(data).get("token") == me["token"]:
            swap.write(data, generation)  # of the same contents, another generation
    elif read_holder(path).get("token") == me["token"]:
        os.utime(path)


def give_up(path: pathlib.Path, me: dict[str, Any]) -> None:
    """Removes the file of this process. Errors: OSError; then it becomes void."""
    if _swap(path):
        clear(path, me, me)
    elif read_holder(path).get("token") == me["token"]:
        path.unlink()


def is_there(path: pathlib.Path) -> bool:
    """Whether somebody holds it, or something else stands in its place."""
    swap = _swap(path)
    return swap.read()[0] is not None if swap else path.exists()


class Watch:
    """How long files have stood still, by the clock of whoever looks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: dict[pathlib.Path, tuple[Any, float]] = {}

    def seconds(self, path: pathlib.Path) -> float:
        """Since when this object has seen no change of the file; 0 at the first look."""
        mark, now = _look(path), self._clock()
        before, since = self._seen.setdefault(path, (mark, now))
        if before != mark:
            self._seen[path], since = (mark, now), now
        return now - since

    def changed(self, path: pathlib.Path) -> bool:
        """Whether the file was touched since the first look."""
        mark = _look(path)
        return self._seen.setdefault(path, (mark, self._clock()))[0] != mark


class Owner:
    """In a `with`: this process alone works on what `path` stands for.

    path: the file that says so; its folder has to be there. what: the folder or run, and doing:
    what is done with it, for the line that a second process is told. again: what it may do instead.
    Errors: UserError when a living process of this machine owns it, RunFailure (exit code 1, so
    that launchers try again) when one of another machine does, or took it over in between: `check`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        what: str,
        doing: str,
        again: str,
        *,
        beat: float = BEAT_SECONDS,
        still: float = STILL_SECONDS,
    ):
        self._path, self._what, self._doing, self._again = path, what, doing, again
        self._beat, self._still = beat, still
        self._me = identity()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_touching, name="owner", daemon=True)

    def __enter__(self) -> Owner:
        watch, told = Watch(), False
        while not self._created():
            holder = read_holder(self._path)
            if holder.get("token") == self._me["token"]:  # moved away, and just put back
                continue
            if is_dead(holder, self._me):
                clear(self._path, holder, self._me)
                continue
            if is_here(holder, self._me):
                raise UserError(f"{self._told(holder)}; {self._again}")
            if watch.changed(self._path) and read_holder(self._path):
                raise RunFailure(f"{self._told(holder)}; {self._again}")
            if watch.seconds(self._path) >= self._still:
                clear(self._path, holder, self._me)
                continue
            if not told:
                print(
                    f"{self._told(holder)}, or was: watching for {self._still:g} s whether that "
                    "process lives",
                    flush=True,
                )
                told = True
            time.sleep(self._beat / 10)
        self._thread.start()
        return self

    def _created(self) -> bool:
        """Whether the file is this process's, also when those are through who saw a dead one there
        a moment ago and may have moved it away. Who finds another's file in its place puts it back,
        so one that was gone for that moment is asked for again.
        """
        if not create(self._path, self._me) and not self._is_mine():
            return False
        time.sleep(SETTLE_SECONDS)
        return self._is_mine()

    def _is_mine(self) -> bool:
        return read_holder(self._path).get("token") == self._me["token"]

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError, RunFailure, UserError):
            give_up(self._path, self._me)

    def check(self) -> None:
        """To be called before something is written that two must not write. Errors: RunFailure when
        another process took over, which it does when this one was stopped or cut off for long.
        """
        if self._is_mine():
            return
        if not is_there(self._path) and create(self._path, self._me):  # somebody removed it
            return
        holder = read_holder(self._path)
        raise RunFailure(
            f"{self._told(holder)}, which took over as this process was silent for more than "
            f"{self._still:g} s; nothing more is written here"
        )

    def _told(self, holder: dict[str, Any]) -> str:
        pid, host = (one_line(holder.get(key, "?"), 60) for key in ("pid", "host"))
        place = "this machine" if is_here(holder, self._me) else f"machine {host}"
        return f"{self._what} is being {self._doing} by process {pid} of {place}"

    def _keep_touching(self) -> None:
        while not self._over.wait(self._beat):
            with contextlib.suppress(OSError, RunFailure, UserError):
                touch(self._path, self._me)


def _swap(path: pathlib.Path) -> Swap | None:
    """The object in whose place the file would be, where its folder is kept in a bucket."""
    keeper = keeper_of(path)
    return keeper.swap(path) if keeper else None


def _said(data: bytes | None) -> dict[str, Any]:
    try:
        said = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _look(path: pathlib.Path) -> tuple[dict[str, Any], Any]:
    """(what the file says, a mark of its last touch). Opened, as network file systems ask their
    server then; what is no plain file is not, as it might never answer.
    """
    if swap := _swap(path):
        data, generation = swap.read()
        return _said(data), generation
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return {}, found.st_mtime_ns
        with open(path, "rb") as file:
            touched = os.fstat(file.fileno()).st_mtime_ns
            return _said(file.read(MAX_BYTES)), touched
    except OSError:
        return {}, -1
