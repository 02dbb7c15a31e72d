"""srpo_jax/train/checkpoint/manager.py: nothing is trusted that does not verify."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.errors import UserError
from srpo_jax.train.checkpoint import seal as checkpoint_files
from srpo_jax.train.checkpoint.array_checksum import describe
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.checkpoint.seal import Damaged, check_files, read_meta
from srpo_jax.train.train_state import TrainState
from tests.support import ROOT

RUN = {"seed": 0}


def make_state(step: int, rows: int = 64) -> TrainState:
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(rows, 32)), jnp.float32)
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
    """In the middle of the largest data file of a step's parameters."""
    files = [f for f in (folder / str(step) / "params").rglob("d/*") if f.is_file()]
    file = max(files, key=os.path.getsize)
    flip(file, file.stat().st_size // 2, 0x10)


def flip(file: pathlib.Path, at: int, bit: int) -> None:
    """In place: a file that is cut and written again is flushed to the disk each time."""
    with open(file, "r+b", buffering=0) as place:
        place.seek(at)
        byte = place.read(1)[0]
        place.seek(at)
        place.write(bytes([byte ^ bit]))


def _truncate(step: pathlib.Path) -> None:
    file = step / "optimizer" / "manifest.ocdbt"
    os.truncate(file, file.stat().st_size // 2)


DAMAGE = {
    "commit_success.txt is missing": lambda step: (step / "commit_success.txt").unlink(),
    "it has no meta": lambda step: shutil.rmtree(step / "meta"),
    "params/stray/ was not saved with it": lambda step: (step / "params" / "stray").mkdir(),
    "meta/a\\nb was not saved with it": lambda step: (step / "meta" / "a\nb").touch(),
}


def test_damage_that_only_a_disk_has_is_named(folder, capsys):
    """Folders that are gone or stray, and names that would break a line; test_folder.py has the
    damage that a bucket may have too.
    """
    step = folder / "3"
    shutil.copytree(step, folder.parent / "good")
    for reason, damage in DAMAGE.items():
        damage(step)
        assert checkpoint_files.tell_states(folder) == 1
        assert f"{step}: damaged: {reason}\n" in capsys.readouterr().out
        shutil.rmtree(step)
        shutil.copytree(folder.parent / "good", step)
    assert checkpoint_files.tell_states(folder) == 0


def test_all_that_is_damaged_is_skipped_by_name(folder, capsys):
    """Stray folders with a step's name and a cut file: restore names them all, uses the newest good
    step, and moves them aside. Other folders and files are left alone.
    """
    (folder / "9").mkdir()
    (folder / "8" / "x").mkdir(parents=True)
    (folder / "mine").mkdir()
    (folder / "7").touch()
    _truncate(folder / "3")
    with Checkpoints(folder, keep=3) as checkpoints:
        state, _ = checkpoints.restore(target_of(make_state(3)), lambda run: None)
        assert [step for step, _ in checkpoints.skipped] == [9, 8, 3]
    assert same(state, make_state(2))
    said = capsys.readouterr().out
    assert "checkpoints/9 skipped: an empty folder" in said
    assert "checkpoints/8 skipped: it has no meta" in said
    assert "checkpoints/3 skipped: optimizer/manifest.ocdbt has 57 bytes" in said
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "7", "mine"]
    aside = folder.parent / "checkpoints-damaged"
    assert sorted(p.name for p in aside.iterdir()) == ["3.0", "8.0", "9.0"]


def test_a_changed_meta_is_damage(folder):
    """The JSON that holds the checksums has a digest of its own, and the arrays are compared with
    them even when all files are sealed: here by a seal made after the damage.
    """
    for file in (folder / "3" / "meta").iterdir():
        file.write_text(file.read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(Damaged, match="own digest"):
        read_meta(folder / "3", 3)
    for item in ("params", "optimizer"):
        shutil.rmtree(folder / "2" / item)
        shutil.copytree(folder / "1" / item, folder / "2" / item)
    checkpoint_files.write_seal(folder / "2")
    check_files(folder / "2")
    assert same(restore(folder), make_state(1))


def test_a_state_of_another_step_is_refused(folder):
    """All checksums right, and yet the arrays are those of step 1: seen by the count among them."""
    for item in ("params", "optimizer"):
        shutil.rmtree(folder / "3" / item)
        shutil.copytree(folder / "1" / item, folder / "3" / item)
    meta = {**read_meta(folder / "3", 3), "arrays": read_meta(folder / "1", 1)["arrays"]}
    meta["digest"] = checkpoint_files.digest_of_meta(meta)
    (folder / "3" / checkpoint_files.META).write_text(json.dumps(meta))
    checkpoint_files.write_seal(folder / "3")
    with pytest.raises(UserError, match="checkpoints/3 holds step 1"):
        restore(folder)


def test_killed_in_the_middle_of_a_save(tmp_path):
    """kill -9 while a step is written: every step that has a name is good, the last one among them,
    and what was half written is gone after the next start.
    """
    code = (
        "import pathlib, sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from tests.train.checkpoint import test_manager as t\n"
        "from srpo_jax.train.checkpoint import handlers as checkpoint\n"
        "seal = checkpoint.write_seal\n"
        "def stop_at_3(step):\n"
        "    if step.name.startswith('3.'):\n"
        "        pathlib.Path(sys.argv[3]).touch()\n"
        "        time.sleep(600)\n"
        "    seal(step)\n"
        "checkpoint.write_seal = stop_at_3\n"
        "with t.Checkpoints(sys.argv[1]) as checkpoints:\n"
        "    for step in range(1, 99):\n"
        "        checkpoints.save(t.make_state(step, 2048), t.RUN)\n"
    )
    folder, here, mark = tmp_path / "c", ROOT, tmp_path / "mark"
    child = subprocess.Popen([sys.executable, "-c", code, folder, here, mark])
    half = folder / "3.orbax-checkpoint-tmp"
    while not mark.exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert half.exists() and checkpoint_files.tell_states(folder) == 0
    state = make_state(2, 2048)
    assert same(restore(folder, target_of(state)), state)
    assert not half.exists()


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
    need = checkpoint_files.space_needed(sum(x.nbytes for x in jax.tree.leaves(make_state(4))))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=need - 1))
        with Checkpoints(folder, keep=3) as checkpoints, pytest.raises(OSError) as caught:
            checkpoints.save(make_state(4), RUN)
    assert caught.value.errno == errno.ENOSPC
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]
    assert same(restore(folder), make_state(3))


# What tensorstore tells event loops that orbax has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_during_a_save(small_disk, monkeypatch):
    """The check beforehand is deceived, the write fails: OSError ENOSPC, the older steps stay good
    and the next start makes room.
    """
    state = make_state(1, 4096)  # 1 MiB of arrays
    folder = small_disk / "c"
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 40))
        with Checkpoints(folder, keep=9) as checkpoints:
            for step in range(1, 9):
                checkpoints.save(state._replace(step=jnp.int32(step)), RUN)
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint_files.tell_states(folder) == 0
    newest = checkpoint_files.steps_in(folder)[-1]
    with Checkpoints(folder, keep=1) as checkpoints:
        found, _ = checkpoints.restore(target_of(state), lambda run: None)
        assert int(found.step) == newest >= 2
        with pytest.raises(OSError):
            checkpoints.save(found._replace(step=jnp.int32(newest + 1)), RUN)
    assert [p.name for p in folder.iterdir() if not p.name.isdigit()] == []


def test_orbax_alone_reads_the_arrays(folder):
    """The files name orbax's own handlers, so a checkpoint can be opened without this package."""
    about = json.loads((folder / "3" / "_CHECKPOINT_METADATA").read_text())
    assert all(name.startswith("orbax.") for name in about["item_handlers"].values())
    with ocp.CheckpointManager(folder) as plain:
        items = ocp.args.Composite(params=ocp.args.StandardRestore())
        assert same(plain.restore(3, args=items)["params"], make_state(3).params)


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
