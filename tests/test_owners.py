"""srpo_jax/owners.py: one process works on a folder, and no dead one keeps it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from srpo_jax import owners
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.owners import Owner, Watch, clear, create, identity, read_holder
from tests.support import ROOT

HOLD = """
import pathlib, sys, time
from srpo_jax.owners import Owner
with Owner(pathlib.Path(sys.argv[1]), "w", "used", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def owner(path, **options):
    return Owner(path, "runs/mine", "trained into", "give another --workdir", **options)


def other_machine(path, **changes):
    """A holder of another machine, as it stands in the file."""
    path.write_text(json.dumps({**identity(), "host": "pod-7", "pid": 9, **changes}))


def test_the_second_is_told_in_one_line_and_a_dead_one_keeps_nothing(tmp_path):
    """Whether it is busy or stopped, a living process of this machine owns the folder; when it was
    killed, it does not for a moment longer.
    """
    path = tmp_path / "train.owner"
    command = [sys.executable, "-c", HOLD, str(path)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert child.stdout.readline() == "held\n"
        for number in (signal.SIGCONT, signal.SIGSTOP):
            os.kill(child.pid, number)
            with pytest.raises(UserError) as told, owner(path):
                pass
            assert str(told.value) == (
                f"runs/mine is being trained into by process {child.pid} of this machine; "
                "give another --workdir"
            )
    finally:
        child.kill()
    child.wait()
    begin = time.monotonic()
    with owner(path, still=60):
        assert read_holder(path)["pid"] == os.getpid()
    assert time.monotonic() - begin < 5 and list(tmp_path.iterdir()) == []


def test_of_many_at_once_one_owns_it(tmp_path):
    """Also when a dead one's file is there, which all of them want to clear away."""
    path = tmp_path / "x"
    for _ in range(5):
        path.write_text(json.dumps({**identity(), "pid": 2**22 + 1, "started": "1"}))
        start, done, won = threading.Barrier(8), threading.Barrier(8), []

        def attempt(start=start, done=done, won=won):
            start.wait()
            try:
                with owner(path) as mine:
                    won.append(mine)
                    done.wait()
            except UserError:
                done.wait()

        threads = [threading.Thread(target=attempt) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_who_was_moved_away_for_a_moment_still_owns_it(tmp_path, monkeypatch):
    """A slower process that saw the dead one before moves the new file aside, sees whose it is, and
    puts it back. Should the new owner look just then, it is not told that it keeps itself out.
    """
    path, looks = tmp_path / "x", []

    def looked(place):
        looks.append(place)
        return {} if len(looks) == 2 else read_holder(place)  # 1: made; 2: after the wait

    monkeypatch.setattr(owners, "read_holder", looked)
    with owner(path):
        assert read_holder(path)["pid"] == os.getpid() and len(looks) > 2


def test_another_machines_owner_is_watched(tmp_path, capsys):
    """One that goes on touching its file lives: exit code 1, so that a launcher tries again. One
    that does not is void, whatever time stands there, and so is a file without a name in it.
    """
    path = tmp_path / "train.owner"
    other_machine(path)
    over = threading.Event()

    def live():
        while not over.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(RunFailure, match="by process 9 of machine pod-7; give") as told:
        with owner(path, beat=0.1, still=30):
            pass
    over.set()
    thread.join()
    assert "\n" not in str(told.value) and "watching for 30 s" in capsys.readouterr().out
    future = time.time() + 1e6
    for content in (path.read_text(), "", "[" * 9999, '{"pid": [1], "host": 3}'):
        path.write_text(content)
        os.utime(path, (future, future))
        with owner(path, beat=0.1, still=0.2):
            assert read_holder(path)["pid"] == os.getpid()


def test_who_lost_the_folder_writes_nothing_more(tmp_path):
    """A process that was cut off for long, and taken for dead, is told before it saves. A file that
    somebody removed is made again.
    """
    path = tmp_path / "train.owner"
    with owner(path) as mine:
        mine.check()
        path.unlink()
        mine.check()
        assert read_holder(path)["pid"] == os.getpid()
        other_machine(path)
        with pytest.raises(RunFailure, match="by process 9 of machine pod-7, which took over"):
            mine.check()
    assert read_holder(path)["host"] == "pod-7", "it is not ours to remove"


def test_an_owner_says_that_it_lives(tmp_path):
    """It touches its file, which is all that another machine can see."""
    path = tmp_path / "x"
    with owner(path, beat=0.02):
        watch = Watch()
        assert not watch.changed(path)
        deadline = time.monotonic() + 20
        while not watch.changed(path) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert watch.changed(path)


def test_a_pid_that_was_given_again_is_no_owner(tmp_path):
    """The process of that number began at another time; a zombie has ended."""
    path, me = tmp_path / "x", identity()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while owners.started(zombie.pid) is not None:
        time.sleep(0.01)
    for pid, began in ((os.getpid(), "1"), (zombie.pid, "1"), ("x", "1"), (2**80, "1")):
        path.write_text(json.dumps({**me, "token": "t", "pid": pid, "started": began}))
        assert owners.is_dead(read_holder(path), me), pid
    assert not owners.is_dead(me, me)
    zombie.wait()


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOENT, errno.ESTALE, errno.EBUSY])
@pytest.mark.parametrize("at", ["open", "close"])
def test_a_lost_race_is_no_error(tmp_path, monkeypatch, number, at):
    """gcsfuse and NFS tell the loser at closing the file (ESTALE); a full disk is an error, and
    leaves nothing behind that would look like a holder.
    """

    class Closing:
        def __init__(self, path, code):
            self.file, self.code = open(path, "x"), code

        def __enter__(self):
            return self.file

        def __exit__(self, *_):
            self.file.close()
            raise OSError(self.code, os.strerror(self.code))

    def failing(code):
        def opened(path, *_, **__):
            if at == "open":
                raise OSError(code, os.strerror(code))
            return Closing(path, code)

        return opened

    path = tmp_path / "x"
    monkeypatch.setattr(owners, "open", failing(number), raising=False)
    assert create(path, identity()) is False
    path.unlink(missing_ok=True)
    monkeypatch.setattr(owners, "open", failing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError) as error:
        create(path, identity())
    assert error.value.errno == errno.ENOSPC and not path.exists()


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would keep whoever reads it for ever; a link leads anywhere. All are cleared away but
    a folder with something in it, which is moved aside.
    """
    me, target = identity(), tmp_path / "target"
    target.mkdir()
    path = tmp_path / "place" / "x"
    path.parent.mkdir()
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to(target), path.mkdir):
        make()
        assert read_holder(path) == {} and not create(path, me)
        assert clear(path, {}, me) and create(path, me)
        path.unlink()
        assert list(path.parent.iterdir()) == [] and target.is_dir()
    path.mkdir()
    (path / "kept").touch()
    assert clear(path, {}, me) and create(path, me)
    assert [f.name for f in path.parent.rglob("kept")] == ["kept"]


def test_a_faster_ones_new_file_is_not_cleared(tmp_path):
    """Two find the same dead holder; the slower one must not remove what the faster one wrote."""
    path, fast, slow = tmp_path / "x", identity(), identity()
    dead = {**fast, "token": "dead"}
    path.write_text(json.dumps(dead))
    assert clear(path, dead, fast) and create(path, fast)
    assert not clear(path, dead, slow)
    assert read_holder(path) == fast and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("third", [True, False])
def test_who_moved_a_faster_ones_file_away_puts_it_back(tmp_path, monkeypatch, links, third):
    """It saw the dead one a moment before. Also where there are no links (mounted buckets), and
    never over the file of a third one, who came meanwhile.
    """
    path, fast, slow, other = tmp_path / "x", identity(), identity(), identity()
    dead, looks = {**fast, "token": "dead"}, []
    assert create(path, fast)

    def looked(place):
        looks.append(place)
        if len(looks) == 2 and third:  # of what was moved away
            path.write_text(json.dumps(other))
        return dead if len(looks) == 1 else read_holder(place)

    def refused(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(owners, "read_holder", looked)
    if not links:
        monkeypatch.setattr(os, "link", refused)
    assert not clear(path, dead, slow)
    assert read_holder(path) == (other if third else fast)
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
