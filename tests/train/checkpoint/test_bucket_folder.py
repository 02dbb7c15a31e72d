"""srpo_jax/train/checkpoint/bucket_folder.py: the order of what is written and removed, and what is
said of a bucket that fails. test_folder.py has what holds on a disk too.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from srpo_jax.errors import RunFailure, UserError
from srpo_jax.train.checkpoint import bucket_folder, manager
from srpo_jax.train.checkpoint.folder import open_folder
from srpo_jax.train.checkpoint.manager import Checkpoints, load_params
from srpo_jax.train.checkpoint.seal import Damaged, check_files, steps_in, tell_states
from tests.support import ROOT, SUPPORT
from tests.support.bucket_server import Change, Lost
from tests.support.checkpoint_places import InBucket
from tests.train.checkpoint.test_folder import save, step_of
from tests.train.checkpoint.test_manager import RUN, make_state, restore, same, target_of

MARKER = "commit_success.txt"


def changes_of(bucket: InBucket, step: int, kind: str) -> list[str]:
    """What was changed of a step, in order."""
    under = f"{step_of(bucket, step).removeprefix('gs://')}/"
    made = [each for each in bucket.bucket.changes if each.name.startswith(under)]
    return [each.name.removeprefix(under) for each in made if each.kind == kind]


def test_the_marker_comes_last_and_goes_first(bucket):
    """Behind the seal, which is behind all else; of a step that is removed, or moved aside, it goes
    before any other object.
    """
    save(bucket, 1, 2, 3, keep=2)
    for step in (1, 2, 3):
        written = changes_of(bucket, step, "put")
        assert written[-2:] == ["SEAL", MARKER] and written.count(MARKER) == 1
    removed = changes_of(bucket, 1, "remove")
    assert removed[0] == MARKER and len(set(removed)) == len(removed) > 10
    open_folder(bucket.address).move_aside(2)
    assert changes_of(bucket, 2, "remove")[0] == MARKER
    assert bucket.steps() == {"3"} and bucket.aside() == {"2.0"}
    check_files(step_of(bucket, 2).replace("checkpoints/2", "checkpoints-damaged/2.0"))


def test_a_step_without_its_marker_is_not_there(bucket, capsys):
    """Not for who trains on, exports or looks; the next start clears it away without a word."""
    save(bucket, 1, 2, 3)
    bucket.remove(f"3/{MARKER}")
    assert steps_in(bucket.address) == [1, 2] and tell_states(bucket.address) == 0
    assert load_params(bucket.address, target_of(make_state(3)).params)[0] == 2
    assert "3" in bucket.steps()  # who only reads changes nothing
    assert same(restore(bucket.address), make_state(2))
    assert bucket.steps() == {"1", "2"} and "skipped" not in capsys.readouterr().out
    save(bucket, 3)
    assert same(restore(bucket.address), make_state(3))


def test_what_is_checked_is_listed_and_not_read(bucket):
    """Of a whole step only its seal is read."""
    save(bucket, 1)
    bucket.bucket.read.clear()
    check_files(step_of(bucket, 1))
    assert bucket.bucket.read == [f"{step_of(bucket, 1).removeprefix('gs://')}/SEAL"]


def test_a_page_that_is_refused_is_no_short_list(bucket):
    """With many objects the list has several pages: none of them may be missing silently."""
    save(bucket, 1)
    for number in range(150):
        bucket.put(f"1/params/stray-{number}", b"")
    with pytest.raises(Damaged, match=r"params/stray-0 \(and 149 more\) was not saved with it"):
        check_files(step_of(bucket, 1))
    bucket.bucket.unlisted = {bucket.bucket.lists + 2}
    with pytest.raises(UserError, match="the bucket refuses"):
        check_files(step_of(bucket, 1))


@pytest.mark.parametrize(
    "status, kind, said",
    [
        (401, UserError, "the bucket refuses the credentials of this machine"),
        (403, UserError, "need the role roles/storage.objectUser"),
        (404, UserError, "there is no such bucket"),
        (503, RunFailure, "the bucket does not answer as it should"),
    ],
)
def test_a_bucket_that_fails_is_named_in_a_line(bucket, monkeypatch, status, kind, said):
    """Before anything is computed, whoever asks; damage it is never taken for."""
    save(bucket, 1)
    monkeypatch.setattr(bucket_folder, "PATIENCE", 0.1)
    bucket.bucket.refuse = status
    target = target_of(make_state(1))
    for ask in (
        lambda: Checkpoints(bucket.address),
        lambda: load_params(bucket.address, target.params),
        lambda: tell_states(bucket.address),
    ):
        with pytest.raises(kind) as found:
            ask()
        text = str(found.value)
        assert text.startswith(f"{bucket.address}: ") and said in text and "\n" not in text
    bucket.bucket.refuse = 0
    with Checkpoints(bucket.address) as checkpoints:
        bucket.bucket.refuse = status
        with pytest.raises(kind, match=said):
            checkpoints.restore(target, lambda run: None)
        bucket.bucket.refuse = 0
    assert bucket.steps() == {"1"}


def test_arrays_that_may_not_be_read_are_no_damage(bucket, monkeypatch):
    """The bucket refuses what orbax asks, in the middle of a restore: that is said, and no step is
    skipped or moved aside.
    """
    save(bucket, 1, 2)

    def refused(*args: Any, **switches: Any) -> None:
        check_files(*args, **switches)
        bucket.bucket.refuse = 403

    monkeypatch.setattr(manager, "check_files", refused)
    with Checkpoints(bucket.address) as checkpoints:
        with pytest.raises(UserError, match=f"^{bucket.address}: the bucket refuses"):
            checkpoints.restore(target_of(make_state(1)), lambda run: None)
        bucket.bucket.refuse = 0
        assert checkpoints.skipped == []
    assert bucket.steps() == {"1", "2"} and bucket.aside() == set()


def test_a_server_that_is_gone_is_named_in_a_line(bucket, monkeypatch):
    """Nobody answers: RunFailure, so that launchers start the run again."""
    monkeypatch.setattr(bucket_folder, "PATIENCE", 0.1)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(RunFailure, match=f"^{bucket.address}: the bucket does not answer"):
        Checkpoints(bucket.address)


# What tensorstore tells event loops that orbax has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "what, at", [*(("quota", at) for at in (0, 3, 20, 33)), ("forbidden", 3), ("forbidden", 33)]
)
def test_a_save_that_is_refused_leaves_the_step_before(bucket, capfd, what, at):
    """From the n-th change of a save on there is no room, or no permission: one error that names
    the bucket, nothing on the terminal, and no step but the one before.
    """
    save(bucket, 1)
    made = len(bucket.bucket.changes)

    def before(change: Change) -> None:
        if len(bucket.bucket.changes) - made == at + 2:  # two are those of the probe
            if what == "quota":
                bucket.bucket.quota = 0
            else:
                bucket.bucket.refuse = 403

    bucket.bucket.before = before
    capfd.readouterr()
    with pytest.raises(OSError if what == "quota" else UserError) as found:
        with Checkpoints(bucket.address) as checkpoints:
            checkpoints.save(make_state(2), RUN)
            checkpoints.wait()
    assert bucket.address in str(found.value)
    assert what == "forbidden" or found.value.errno == errno.EDQUOT
    assert "Traceback" not in capfd.readouterr().err
    bucket.settle()
    bucket.bucket.quota, bucket.bucket.refuse = None, 0
    bucket.bucket.before = lambda _: None
    assert steps_in(bucket.address) == [1]
    assert same(restore(bucket.address), make_state(1))
    assert bucket.steps() == {"1"}


def test_answers_to_a_save_that_has_failed_are_not_told(bucket, monkeypatch, caplog):
    """By a traceback each; pytest has a hook of its own, so the test above does not see them."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    bucket_folder.drop_late_answers.cache_clear()
    bucket_folder.drop_late_answers()
    for text in ("Event loop is closed", "another mistake"):
        sys.unraisablehook(cast(Any, SimpleNamespace(exc_value=RuntimeError(text))))
    assert [str(caught.exc_value) for caught in told] == ["another mistake"]
    open_folder(bucket.address).steps()  # as every run begins
    loop = asyncio.new_event_loop()
    for text in ("Task exception was never retrieved", "another mistake"):
        loop.call_exception_handler({"message": text, "exception": ValueError("PERMISSION_DENIED")})
    loop.close()
    assert [record.getMessage() for record in caplog.records] == ["another mistake"]


def test_a_bucket_that_may_not_be_written_is_told_at_the_start(bucket):
    """Not after the first hours, when something is saved."""
    bucket.bucket.quota = -1
    with pytest.raises(OSError) as found:
        Checkpoints(bucket.address)
    assert found.value.errno == errno.EDQUOT and found.value.filename == bucket.address


def test_no_answer_to_a_change_is_asked_for_again(bucket):
    """Connections that break in the middle of a save do not end it."""
    cut = []

    def before(change: Change) -> None:
        if change.name.endswith(("SEAL", "meta/metadata", "_METADATA")) and change not in cut:
            cut.append(change)
            raise Lost

    bucket.bucket.before = before
    save(bucket, 1)
    last = {change.name.rpartition("/")[2] for change in cut}
    assert last == {"SEAL", "metadata", "_METADATA", "_CHECKPOINT_METADATA"}
    assert same(restore(bucket.address), make_state(1))


def test_packages_that_are_missing_are_named(monkeypatch):
    """Before anything is asked of a bucket."""
    found = importlib.util.find_spec
    hidden = "gcsfs"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == hidden else found(name)
    )
    with pytest.raises(UserError, match=r"need the package gcsfs: pip install 'srpo_jax\[gcs\]'"):
        open_folder("gs://bucket-a/run/checkpoints")


@pytest.mark.slow
def test_killed_at_any_moment_of_a_save():
    """kill -9 before each of twelve changes of a save, from its first object to the removal of the
    step before, and around its marker: a step that has its marker is whole, and the next start
    clears away what is left of the others and goes on bit for bit.
    """
    done = subprocess.run(
        [sys.executable, SUPPORT / "checkpoint_killed.py"],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    moments = json.loads(done.stdout.splitlines()[-1])["moments"]
    assert len(moments) == 12 and all(each["killed"] for each in moments)
    # At the last one both were whole: the older one goes with the next save.
    assert [each["left"] for each in moments] == [["2"]] * 11 + [["1", "2"]]
    *seen, before_marker, before_removal = (each["steps"] for each in moments)
    assert seen[0] == [1] and seen[-1] == [2] and seen == sorted(seen)
    assert before_marker == [1] and before_removal == [1, 2]
