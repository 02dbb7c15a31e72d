"""srpo_jax/train/checkpoint/folder.py: the same promises on a disk and in a bucket."""

from __future__ import annotations

import random

import jax
import jax.numpy as jnp
import pytest

from srpo_jax.errors import UserError
from srpo_jax.train.checkpoint import manager
from srpo_jax.train.checkpoint.manager import Checkpoints, load_params
from srpo_jax.train.checkpoint.seal import Damaged, check_files, read_meta, steps_in, tell_states
from tests.support.checkpoint_places import CheckpointPlace, OnDisk, bucket_place
from tests.train.checkpoint.test_manager import RUN, make_state, restore, same, target_of


def save(place: CheckpointPlace, *steps: int, keep: int = 3) -> None:
    with Checkpoints(place.address, keep=keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(make_state(step), RUN) == step
        checkpoints.verify(steps[-1], target_of(make_state(steps[-1])))


def flip(place: CheckpointPlace, name: str, at: int, bit: int) -> None:
    data = bytearray(place.get(name))
    data[at] ^= bit
    place.put(name, bytes(data))


def flip_one_bit(place: CheckpointPlace, step: int) -> None:
    """In the middle of the largest data file of a step's parameters."""
    files = {n: size for n, size in place.files().items() if n.startswith(f"{step}/params/")}
    name = max((name for name in files if "/d/" in name), key=lambda name: files[name])
    flip(place, name, files[name] // 2, 0x10)


def step_of(place: CheckpointPlace, step: int) -> str:
    """The address of a step."""
    return f"{place.address}/{step}"


def test_newest_step_comes_back_bit_for_bit(place):
    """Values, dtypes and the optimizer's own structure survive; of the steps those are there that
    are kept.
    """
    save(place, 1, 2, 3, keep=2)
    state = restore(place.address)
    assert same(state, make_state(3))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(3))
    assert state.params["a"]["half"].dtype == jnp.bfloat16
    step, params = load_params(place.address, target_of(make_state(3)).params)
    assert step == 3 and same(params, make_state(3).params)
    assert place.steps() == {"2", "3"} == set(map(str, steps_in(place.address)))
    assert tell_states(place.address) == 0


def test_a_flipped_bit_is_found_and_the_step_before_is_used(place, capsys):
    """orbax restores the damaged file without error; the checksum names it, and the step is free
    to be saved again.
    """
    save(place, 1, 2, 3)
    flip_one_bit(place, 3)
    assert int(load_params(place.address, target_of(make_state(3)).params)[0]) == 2
    assert same(restore(place.address), make_state(2))
    assert "checkpoints/3 skipped" in capsys.readouterr().out
    assert place.aside() == {"3.0"} and place.steps() == {"1", "2"}
    save(place, 3)
    assert same(restore(place.address), make_state(3))


def test_a_thousand_flipped_bits_are_all_found(place):
    """One random bit at a time, in any file of a step, also where it would change nothing that is
    restored: none is accepted, and the file is named. Half of them hit a random file, half a random
    byte.
    """
    save(place, 3)
    sizes = place.files()
    files = sorted(sizes)
    own = {"3/SEAL", "3/commit_success.txt", "3/_CHECKPOINT_METADATA", "3/meta/metadata"}
    assert own < set(files)
    rng, hit = random.Random(0), set()
    for trial in range(1000):
        even = rng.choices(files, [sizes[name] for name in files])[0]
        name = rng.choice(files) if trial % 2 else even
        at, bit = rng.randrange(sizes[name]), 1 << rng.randrange(8)
        flip(place, name, at, bit)
        with pytest.raises(Damaged) as found:  # what restore() asks before orbax reads a byte
            read_meta(step_of(place, 3), 3)
            check_files(step_of(place, 3))
        what = {"3/SEAL": "its SEAL does", "3/meta/metadata": "its meta"}
        assert str(found.value).startswith(what.get(name, f"{name[2:]} is not what was saved"))
        flip(place, name, at, bit)
        hit.add(name)
    assert hit == set(files)
    check_files(step_of(place, 3))


def test_damage_is_named_by_step_and_file(place, capsys):
    """Cut, removed, stray and copied files: each is named, and the command that looks at all steps
    says the same and exits 1.
    """
    save(place, 1, 2, 3)
    manifest = "3/optimizer/manifest.ocdbt"
    damages = {
        "optimizer/manifest.ocdbt has 57 bytes, it had 114": lambda: place.put(
            manifest, place.get(manifest)[:57]
        ),
        "params/_METADATA is missing": lambda: place.remove("3/params/_METADATA"),
        "it has no SEAL": lambda: place.remove("3/SEAL"),
        "it has no meta": lambda: place.remove("3/meta/metadata"),
        "params/stray was not saved with it": lambda: place.put("3/params/stray", b""),
        "it holds step 1": lambda: place.copy("1", "3"),
    }
    place.copy("3", "good")
    for reason, damage in damages.items():
        damage()
        assert tell_states(place.address) == 1
        said = capsys.readouterr().out
        assert f"{step_of(place, 3)}: damaged: {reason}\n" in said
        assert f"{step_of(place, 2)}: good\n" in said
        place.copy("good", "3")
    assert tell_states(place.address) == 0


def test_nothing_to_restore(place, tmp_path):
    """A new folder starts from nothing; a folder where all is damaged does not, silently."""
    with pytest.raises(UserError, match="no checkpoints in .*checkpoints: run `srpo train` first"):
        load_params(place.address, {})
    assert restore(place.address) is None
    save(place, 1, 2, 3)
    for step in (1, 2, 3):
        flip_one_bit(place, step)
    with pytest.raises(UserError, match="none of the checkpoints"):
        restore(place.address)
    assert place.steps() == {"1", "2", "3"}


def test_the_best_steps_stay_and_are_found_again(place):
    """keep_best is besides keep, by a metric that is stored in each step: also after a restart."""
    values = {1: 0.3, 2: 0.1, 3: 0.1, 4: None, 5: 0.2, 6: 0.9}
    target = target_of(make_state(1)).params
    for steps in ((1, 2, 3), (4, 5, 6)):
        with Checkpoints(place.address, keep=1, keep_best=2) as checkpoints:
            for step in steps:
                metrics = {} if values[step] is None else {"loss": values[step]}
                checkpoints.save(make_state(step), RUN, metrics=metrics)
            checkpoints.wait()
            assert checkpoints.best() == 3  # of equals the later one
    assert steps_in(place.address) == [2, 3, 6]
    assert load_params(place.address, target)[0] == 6
    step, params = load_params(place.address, target, best="loss")
    assert step == 3 and same(params, make_state(3).params)
    assert load_params(place.address, target, step=2)[0] == 2
    with pytest.raises(UserError, match="no checkpoint of step 5 .* there are 2, 3, 6"):
        load_params(place.address, target, step=5)
    with pytest.raises(UserError, match="was saved with the metric rewards/margins"):
        load_params(place.address, target, best="rewards/margins")
    flip_one_bit(place, 3)
    assert load_params(place.address, target, best="loss")[0] == 2


def test_saved_values_are_those_of_the_call(place):
    """The save runs in the background while donated steps overwrite the buffers it came from."""
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.tree.map(jnp.copy, make_state(1))._replace(params={"w": jnp.zeros((1 << 20,))})
    target = target_of(state)
    with Checkpoints(place.address, keep=1) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(state, RUN) == step
            state = bump(state)
            for _ in range(3):
                state = bump(state)._replace(step=jnp.int32(step + 1))
        checkpoints.verify(2, target)


def test_what_is_noted_is_that_of_the_call(place):
    """The caller goes on to count in the same dict while meta is still being written."""
    notes = {"num_tokens": 5, "more": [1]}
    with Checkpoints(place.address, keep=1) as checkpoints:
        checkpoints.save(make_state(4), RUN, notes)
        notes["num_tokens"] = 6
        notes["more"].append(2)
        _, found = checkpoints.restore(target_of(make_state(4)), lambda run: None)
    assert found == {"num_tokens": 5, "more": [1]}


def test_a_checksum_that_fails_in_the_background_fails_the_save(place, monkeypatch):
    """It is waited for after `save` returned; nobody takes what was written for a step."""

    def wait():
        raise RuntimeError("no checksum")

    save(place, 1, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(manager, "start", lambda tree: wait)
        with pytest.raises(RuntimeError, match="no checksum"):
            with Checkpoints(place.address, keep=3) as checkpoints:
                checkpoints.save(make_state(4), RUN)
                checkpoints.wait()
    assert steps_in(place.address) == [1, 2, 3] and tell_states(place.address) == 0


def test_a_step_may_be_copied_from_one_kind_of_place_to_the_other(tmp_path):
    """It is good there, its damage is found there, and it is restored from there."""
    disk = OnDisk(tmp_path / "checkpoints")
    with bucket_place() as bucket:
        save(disk, 1)
        save(bucket, 2)
        for source, target in ((disk, bucket), (bucket, disk)):
            for name in source.files():
                target.put(name, source.get(name))
        for each in (disk, bucket):
            assert tell_states(each.address) == 0 and steps_in(each.address) == [1, 2]
            assert same(restore(each.address), make_state(2))
            flip_one_bit(each, 1)
            with pytest.raises(Damaged, match="is not what was saved"):
                check_files(step_of(each, 1))
            flip_one_bit(each, 2)
            with pytest.raises(Damaged, match="is not what was saved"):
                check_files(step_of(each, 2))
