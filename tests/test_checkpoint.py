"""srpo_jax/checkpoint.py: nothing is trusted that does not verify."""

from __future__ import annotations

import errno
import os
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from srpo_jax.checkpoint import Checkpoints, describe, load_params
from srpo_jax.errors import UserError
from srpo_jax.mesh import make_mesh
from srpo_jax.state import TrainState

RUN = {"seed": 0}


def make_state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)
    half = jnp.asarray(rng.normal(size=(48,)), jnp.bfloat16)
    moments = ({"a/kernel": kernel * 2}, jnp.int32(step))
    return TrainState(jnp.int32(step), {"a": {"kernel": kernel, "half": half}}, moments, None)


def target_of(state: TrainState) -> TrainState:
    place = NamedSharding(make_mesh(devices=jax.devices()[:1]), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Steps 1, 2 and 3 of a run."""
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (1, 2, 3):
            assert checkpoints.save(make_state(step), RUN) == step
            checkpoints.wait()
        checkpoints.verify(3, target_of(make_state(3)))
    return tmp_path / "checkpoints"


def restore(folder, target=None, check_run=lambda run: None):
    with Checkpoints(folder, keep=3) as checkpoints:
        return checkpoints.restore(target or target_of(make_state(3)), check_run)[0]


def flip_one_bit(folder: pathlib.Path, step: int) -> None:
    """In the middle of the largest data file of a step."""
    files = [f for f in (folder / str(step)).rglob("*") if f.is_file() and f.parent.name == "d"]
    file = max(files, key=os.path.getsize)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def test_newest_step_comes_back_bit_for_bit(folder):
    """Values, dtypes and the optimizer's own structure survive."""
    state = restore(folder)
    assert same(state, make_state(3))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(3))
    assert state.params["a"]["half"].dtype == jnp.bfloat16
    step, params = load_params(folder, target_of(make_state(3)).params)
    assert step == 3 and same(params, make_state(3).params)


def test_a_flipped_bit_is_found_and_the_step_before_is_used(folder, capsys):
    """orbax restores the damaged file without error; the checksum names it, and the step is free
    to be saved again.
    """
    flip_one_bit(folder, 3)
    assert int(load_params(folder, target_of(make_state(3)).params)[0]) == 2
    assert same(restore(folder), make_state(2))
    assert "checkpoints/3 skipped" in capsys.readouterr().out
    assert (folder.parent / "checkpoints-damaged" / "3.0").is_dir()
    with Checkpoints(folder, keep=3) as checkpoints:
        checkpoints.save(make_state(3), RUN)
    assert same(restore(folder), make_state(3))


def test_empty_and_truncated_steps_are_skipped(folder, capsys):
    """A stray folder with a step's name and a cut file are both named."""
    (folder / "9").mkdir()
    for file in (folder / "3" / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            os.truncate(file, file.stat().st_size // 2)
    assert same(restore(folder), make_state(2))
    said = capsys.readouterr().out
    assert "checkpoints/9 skipped: an empty folder" in said and "checkpoints/3 skipped" in said


def test_a_changed_meta_is_damage(folder):
    """The JSON that holds the checksums has a digest of its own."""
    for file in (folder / "3" / "meta").iterdir():
        file.write_text(file.read_text().replace('"step": 3', '"step": 4'))
    assert same(restore(folder), make_state(2))


def test_nothing_to_restore(tmp_path, folder):
    """A new folder starts from nothing; a folder where all is damaged does not, silently."""
    assert restore(tmp_path / "new") is None
    for step in (1, 2, 3):
        flip_one_bit(folder, step)
    with pytest.raises(UserError, match="none of the checkpoints"):
        restore(folder)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["1", "2", "3"]
    with pytest.raises(UserError, match="srpo train"):
        load_params(tmp_path / "nowhere", {})


def test_another_run_and_other_shapes_are_refused(folder):
    """The caller sees the stored run first; orbax's silent cast of dtypes cannot happen."""

    def refuse(run):
        raise UserError(f"seed {run['seed']}")

    with pytest.raises(UserError, match="seed 0"):
        restore(folder, check_run=refuse)
    state = make_state(3)
    cast = state._replace(params=jax.tree.map(lambda x: x.astype(jnp.float16), state.params))
    with pytest.raises(UserError, match=r"a/half is .*bfloat16.*float16"):
        restore(folder, target=target_of(cast))


def test_a_full_disk_is_told_before_anything_is_written(folder, monkeypatch):
    """OSError ENOSPC (one line and exit code 1 on the command line); the older steps stay good."""
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with Checkpoints(folder, keep=3) as checkpoints, pytest.raises(OSError) as caught:
            checkpoints.save(make_state(4), RUN)
    assert caught.value.errno == errno.ENOSPC
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]
    assert same(restore(folder), make_state(3))


def test_saved_values_are_those_of_the_call(tmp_path):
    """The save runs in the background while donated steps overwrite the buffers it came from."""
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.tree.map(jnp.copy, make_state(1))._replace(params={"w": jnp.zeros((1 << 20,))})
    target = target_of(state)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(state, RUN) == step
            state = bump(state)
            for _ in range(3):
                state = bump(state)._replace(step=jnp.int32(step + 1))
        checkpoints.verify(2, target)


def test_checksum_sees_bits_and_places():
    """One flipped bit anywhere, or two values exchanged, changes the number."""
    x = np.random.default_rng(0).normal(size=(37, 11)).astype(np.float32)
    base = describe({"x": jnp.asarray(x)})["x"]
    assert base[:2] == [[37, 11], "float32"]
    seen = {base[2]}
    for word, bit in [(0, 0), (0, 31), (5, 7), (406, 23)]:
        changed = x.copy()
        changed.reshape(-1).view(np.uint32)[word] ^= np.uint32(1 << bit)
        seen.add(describe({"x": jnp.asarray(changed)})["x"][2])
    exchanged = x.copy()
    exchanged[0, 0], exchanged[1, 3] = x[1, 3], x[0, 0]
    seen.add(describe({"x": jnp.asarray(exchanged)})["x"][2])
    assert len(seen) == 6
