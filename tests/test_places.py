"""srpo_jax/places.py: a place that does not do what a run needs is named, and folders are moved
where they cannot be renamed.
"""

from __future__ import annotations

import builtins
import os
import pathlib
import shutil
import threading
import time

import pytest

from srpo_jax import places
from srpo_jax.errors import UserError, one_line
from srpo_jax.owners import create, identity, read_holder
from srpo_jax.places import PROMISES, check_place, clear_moving, is_moving, move_folder
from tests.support.failing_disk import FailingDisk, Killed
from tests.support.faulty_place import FaultyPlace


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/"
        for path in folder.rglob("*")
    }


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    folder = tmp_path / "place" / "source"
    (folder / "inner" / "empty").mkdir(parents=True)
    for name in ("SEAL", "a", "inner/b", "inner/c", "z"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("folders", ["refused", "steps"])
def test_a_mounted_bucket_or_a_disk_will_do(tmp_path, folders):
    """Nothing of the test is left."""
    for folder in (tmp_path / "disk", tmp_path / "bucket" / "run"):
        with FaultyPlace(tmp_path / "bucket", folders=folders, stale_seconds=60)():
            check_place(folder)
        assert folder.is_dir() and not list(folder.iterdir())


def forgets_closed(patch):
    patch.setattr(pathlib.Path, "read_bytes", lambda path: b"one")


def lets_all_create(patch):
    real = builtins.open
    opened = lambda path, mode="r", **more: real(path, mode.replace("x", "w"), **more)  # noqa: E731
    patch.setattr(places, "open", opened, raising=False)


def cuts_what_is_appended_to(patch):
    real = builtins.open
    opened = lambda path, mode="r", *a, **b: real(path, mode.replace("ab", "wb"), *a, **b)  # noqa: E731
    patch.setattr(places, "open", opened, raising=False)


def loses_a_file(patch):
    real = os.rename
    moved = lambda a, b: (real(a, b), [f.unlink() for f in b.rglob("file")])  # noqa: E731
    patch.setattr(os, "rename", moved)


BROKEN = {
    "a file that was closed is there": forgets_closed,
    "a line appended to a file": cuts_what_is_appended_to,
    "of two that make a file only": lets_all_create,
    "a file takes the name": lambda patch: patch.setattr(os, "replace", shutil.copyfile),
    "a folder can be moved": loses_a_file,
    "the time that a file is touched": lambda patch: patch.setattr(os, "utime", lambda *_: None),
    "a file that was removed": lambda patch: patch.setattr(pathlib.Path, "unlink", lambda *_: None),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_promise_is_named_in_one_line(tmp_path, promise):
    """Before anything is computed for a place that would lose it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as told:
        BROKEN[promise](patch)
        check_place(tmp_path / "run")
    text = str(told.value)
    assert text.startswith(f"{tmp_path}/run: this place") and promise in text
    assert "docs/places.md" in text and one_line(text) == text
    assert not list((tmp_path / "run").iterdir())


def test_what_a_killed_check_left_goes_in_time(tmp_path):
    """Not at once: it may be of a check that runs now, on another machine."""
    left = [tmp_path / f".probe.tmp-1-{name}" for name in ("old", "young")]
    for folder in left:
        (folder / "inner").mkdir(parents=True)
    now = time.time()
    os.utime(left[0], (now - 4000, now - 4000))
    check_place(tmp_path)
    assert [folder.exists() for folder in left] == [False, True]


def test_a_clock_that_goes_backwards_is_named(tmp_path, monkeypatch):
    """Shards that are there are known by their time: its manifest is no older."""
    monkeypatch.setattr(places, "PROMISES", {"later": PROMISES[LATER]})
    real, number = pathlib.Path.write_bytes, iter(range(9, 0, -1))

    def written(path, data):
        real(path, data)
        os.utime(path, (second := next(number), second))

    monkeypatch.setattr(pathlib.Path, "write_bytes", written)
    with pytest.raises(UserError, match="later"):
        check_place(tmp_path)


LATER = next(name for name in PROMISES if "no older" in name)


def test_a_full_disk_is_no_broken_promise(tmp_path):
    """It is told as what it is, by the folder's name."""
    for at in (1, 4, 9):
        with pytest.raises(OSError, match=f"No space left.*{tmp_path}"):
            with FailingDisk(tmp_path, at)():
                check_place(tmp_path / "run")


@pytest.mark.parametrize("folders", ["refused", "steps"])
def test_a_folder_moves_wherever_it_lies(source, folders):
    """Also where it may not be renamed: then file by file, the last ones behind all others."""
    content, target, order = files(source), source.with_name("target"), []
    faulty = FaultyPlace(source.parent, folders=folders)
    with pytest.MonkeyPatch.context() as patch, faulty():
        real = os.replace
        patch.setattr(os, "replace", lambda a, b: (order.append(b.name), real(a, b)))
        move_folder(source, target, last=("SEAL",))
    assert files(target) == content and [p.name for p in source.parent.iterdir()] == ["target"]
    assert order == (["a", "b", "c", "z", "SEAL"] if folders == "refused" else [])


@pytest.mark.parametrize("at", range(5))
def test_a_folder_of_which_half_was_moved_is_told(source, at):
    """Killed in the middle of a rename that takes steps: what is there counts for nothing, and is
    cleared away, but what other folders hold."""
    target, other = source.with_name("target"), source.with_name("other")
    other.mkdir()
    with pytest.raises(Killed), FaultyPlace(source.parent, dies_after=at)():
        move_folder(source, target)
    assert is_moving(target) and not is_moving(other) and len(files(source)) < 9
    clear_moving(source.parent, "not this one".__eq__)
    assert is_moving(target)
    clear_moving(source.parent)
    assert not is_moving(target) and not target.exists() and other.is_dir()


def test_a_rename_that_fails_is_an_error_and_moves_nothing(source):
    """What is refused for another reason is not tried file by file."""
    target = source.with_name("gone") / "target"
    content = files(source)
    with pytest.raises(FileNotFoundError):
        move_folder(source, target)
    with FailingDisk(source.parent, 3)(), pytest.raises(OSError, match="No space"):
        move_folder(source, source.with_name("target"))
    assert files(source) == content and not is_moving(source.with_name("target"))


def test_of_sixteen_that_claim_one_wins_when_losers_are_told_late(tmp_path):
    """On a mounted bucket all may open the new file; ESTALE at closing tells who was too late."""
    faulty = FaultyPlace(tmp_path, stale_seconds=60)
    with faulty():
        for number in range(20):
            path, start, won = tmp_path / f"{number}.claim", threading.Barrier(16), []

            def attempt(path=path, start=start, won=won):
                me = identity()
                start.wait()
                if create(path, me):
                    won.append(me["token"])

            threads = [threading.Thread(target=attempt) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert won == [read_holder(path)["token"]]
    assert faulty.lost, "nobody was told late, so nothing was tried"
