"""Checkpoints on a bucket that is mounted: the rename of a folder is refused, or is many steps."""

from __future__ import annotations

import pathlib

import pytest

from srpo_jax.places import move_folder
from srpo_jax.train.checkpoint.manager import Checkpoints, load_params
from srpo_jax.train.checkpoint.seal import SEAL, steps_in, tell_states
from tests.support.failing_disk import Killed
from tests.support.faulty_place import FaultyPlace
from tests.train.checkpoint.test_manager import (
    RUN,
    flip_one_bit,
    make_state,
    restore,
    same,
    target_of,
)


@pytest.fixture
def steps(tmp_path) -> pathlib.Path:
    """Steps 1, 2 and 3, of which the third is written but has no name yet."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), RUN)
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    return folder


@pytest.mark.parametrize("folders", ["refused", "steps"])
def test_steps_are_saved_found_and_moved_aside(tmp_path, folders):
    """As on a disk: all verify, those that are too many go, a damaged one is moved aside."""
    folder, target = tmp_path / "bucket" / "checkpoints", target_of(make_state(3))
    faulty = FaultyPlace(tmp_path / "bucket", folders=folders, stale_seconds=60)
    with faulty():
        with Checkpoints(folder, keep=2) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(make_state(step), RUN)
            checkpoints.verify(3, target)
        assert same(restore(folder), make_state(3))
        assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
        flip_one_bit(folder, 3)
        assert same(restore(folder), make_state(2))
        assert [path.name for path in folder.iterdir()] == ["2"]
        aside = folder.with_name("checkpoints-damaged")
        assert [path.name for path in aside.iterdir()] == ["3.0"]
        assert (aside / "3.0" / SEAL).is_file()
    assert tell_states(folder) == 0 and (folders == "refused" or faulty.moved)


@pytest.mark.parametrize("at", [0, 1, 6])
def test_killed_while_a_step_gets_its_name(steps, capsys, at):
    """Half of its files have moved: nobody takes it for a step, with or without a word, and the
    next start clears it away.
    """
    with pytest.raises(Killed), FaultyPlace(steps, dies_after=at)():
        move_folder(steps / "3.orbax-checkpoint-tmp", steps / "3", last=(SEAL,))
    assert (steps / "3").is_dir() and steps_in(steps) == [1, 2] and tell_states(steps) == 0
    assert load_params(steps, target_of(make_state(3)).params)[0] == 2
    assert same(restore(steps), make_state(2))
    assert "skipped" not in capsys.readouterr().out
    assert sorted(path.name for path in steps.iterdir()) == ["1", "2"]
    with Checkpoints(steps, keep=3) as checkpoints:
        checkpoints.save(make_state(3), RUN)
    assert same(restore(steps), make_state(3))
