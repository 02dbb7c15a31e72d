"""Several processes with a few devices each, for test_checkpoint_processes.py.

`python checkpoint_run.py FOLDER PROCESSES DATA,FSDP,TENSOR WHAT...`; devices per process by
JAX_NUM_CPU_DEVICES. Imports once and forks, before jax starts anything: starting eight
interpreters would take longer than all the rest. Every process prints one JSON line.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.errors import UserError
from srpo_jax.launch.local import free_port
from srpo_jax.train.checkpoint import local_folder
from srpo_jax.train.checkpoint.array_checksum import describe
from srpo_jax.train.checkpoint.folder import open_folder
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.train_state import TrainState
from tests.support.killed import ended, forked

SIZE = 1 << 18  # float32 values of the large array, 1 MiB


def specs() -> TrainState:
    """How each array of the state lies: whole, over one axis, over two."""
    params = {"big": P("fsdp", "tensor"), "half": P(("data", "fsdp")), "whole": P()}
    return TrainState(P(), params, ({"big": P("fsdp", "tensor")}, P()), None)


def values(step: int) -> TrainState:
    """The same on every mesh."""
    rng = np.random.default_rng(7)
    big = rng.normal(size=(512, SIZE // 512)).astype(np.float32)
    half = rng.normal(size=(64, 3)).astype(jnp.bfloat16)
    whole = rng.normal(size=(5,)).astype(np.float32)
    moments = ({"big": big[::-1].copy()}, np.int32(3))
    return TrainState(np.int32(step), {"big": big, "half": half, "whole": whole}, moments, None)


def place(mesh, state: TrainState) -> TrainState:
    """Global arrays, of which each process makes its own shards."""
    return jax.tree.map(
        lambda x, spec: jax.make_array_from_callback(
            np.shape(x), NamedSharding(mesh, spec), lambda at: np.asarray(x)[at]
        ),
        state,
        specs(),
    )


def target_of(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def spoil(step: epath.Path) -> None:
    """One bit in the middle of the largest file of a step, by process 0."""
    if jax.process_index() == 0:
        folder = open_folder(step)
        files = {name: fact[0] for name, fact in folder.facts().items() if fact is not None}
        name = max(files, key=lambda name: files[name])
        data = bytearray(folder.read(name))
        data[len(data) // 2] ^= 0x10
        folder.write(name, bytes(data))
    multihost_utils.sync_global_devices("spoilt")


@contextlib.contextmanager
def hashed_files(log: epath.Path):
    """Leaves the names of the files that this process hashes meanwhile, a line each."""
    real, names = local_folder.file_sha256, []
    local_folder.file_sha256 = lambda path: names.append(str(path)) or real(path)
    try:
        yield
    finally:
        local_folder.file_sha256 = real
        log.write_text("\n".join(names))


def work(folder: epath.Path, mesh, what: list[str]) -> dict:
    """Does one thing after the other and says what came of it."""
    found = {"devices": [jax.process_count(), jax.local_device_count()]}
    with Checkpoints(folder, keep=3) as checkpoints:
        for each in what:
            name, _, number = each.partition(":")
            state = place(mesh, values(int(number or 0)))
            if name == "save":
                with hashed_files(folder.with_name(f"hashed.{jax.process_index()}")):
                    saved = checkpoints.save(state, {}, metrics={"loss": 1.0})
                    checkpoints.wait()
                checkpoints.verify(saved, target_of(state))
            elif name == "spoil":
                spoil(folder / number)
            elif name == "lie":  # about the room on the disk
                shutil.disk_usage = lambda path: SimpleNamespace(free=1 << 40)
            elif name == "fill":  # until the disk is full
                try:
                    for step in range(1, 99):
                        found["tried"] = step
                        checkpoints.save(place(mesh, values(step)), {})
                except OSError as error:
                    found["errno"] = error.errno
            elif name == "restore":
                try:
                    state, _ = checkpoints.restore(target_of(state), lambda run: None)
                except UserError as error:
                    found["error"] = str(error)
                    continue
                found["step"] = int(state.step)
                found["skipped"] = checkpoints.skipped
                found["sums"] = describe({"params": state.params, "moments": state.opt_state})
    return found


def child(index: int, port: int, count: int, folder: str, sizes: str, what: list[str]) -> None:
    signal.alarm(240)  # ends a process that waits for one that is gone
    if count > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", count, index, coordinator_bind_address=f"127.0.0.1:{port}"
        )
    mesh = make_mesh(*map(int, sizes.split(",")))
    found = work(epath.Path(folder), mesh, what)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    if count > 1:
        jax.distributed.shutdown()


def main(folder: str, count: str, sizes: str, *what: str) -> int:
    port, children = free_port(), []
    for index in range(int(count)):
        work = functools.partial(child, index, port, int(count), folder, sizes, list(what))
        children.append(forked(work))
    return max(ended(pid) != 0 for pid in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
