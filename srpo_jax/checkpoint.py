"""Checkpoints that are checked before they are trusted: orbax files plus our own checksums.

WORKDIR/checkpoints/STEP/{params,optimizer,meta}. `meta` is JSON: what run this is, and shape, dtype
and checksum of every array. orbax 0.12 restores a file with a flipped bit without a word, and casts
to another dtype without a word, so both are compared here. The checksum is a sum of integers
modulo 2^32, computed where the arrays live: any mesh gives the same number.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from srpo_jax.errors import UserError
from srpo_jax.sharding import by_path
from srpo_jax.state import TrainState

FORMAT = 1
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Damaged(Exception):
    """A checkpoint that does not hold what it says."""


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """uint32 sum of the array's words times odd weights that differ by position.

    An odd weight times a change of one bit is never 0 modulo 2^32, so every flipped bit shows; the
    positions make exchanged values show. No reshape, so no array is gathered to compute it.
    """
    words = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        position = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index + position * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    weight = index * jnp.uint32(0x9E3779B1) | jnp.uint32(1)
    return jnp.sum(words * weight, dtype=jnp.uint32)


def describe(tree: Any) -> dict[str, list]:
    """{path: [shape, dtype, checksum]} of the arrays of a tree."""
    # One small program per shape (moments share their parameter's), and each is read before the
    # next starts: XLA:CPU can deadlock with the collectives of several programs under way.
    return {
        path: [list(x.shape), x.dtype.name, int(_checksum(x))] for path, x in by_path(tree).items()
    }


def _items(state: TrainState) -> dict[str, Any]:
    """What of a state is stored, as plain dicts. `base` is not: it never changes."""
    items = {
        "params": state.params,
        "optimizer": {"step": state.step, **by_path(state.opt_state)},
    }
    return items if state.master is None else {**items, "master": state.master}


def _digest(meta: dict[str, Any]) -> str:
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


class Checkpoints:
    """The checkpoints of one run. Use it in a `with`: leaving waits until the last one is on disk,
    which orbax alone does not do (a process that just ends exits 0 and has lost it).
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self.directory = pathlib.Path(directory).absolute()
        policies = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.LatestN(keep), cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way and releases orbax's threads."""
        try:
            with self._full_disk_said_plainly():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    def wait(self) -> None:
        """Waits for the save under way; raises what went wrong with it."""
        with self._full_disk_said_plainly():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _full_disk_said_plainly(self) -> Iterator[None]:
        """Turns what the storage layer says of a full disk (a ValueError) into OSError ENOSPC."""
        try:
            yield
        except ValueError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            place = str(self.directory)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place) from None

    def save(
        self, state: TrainState, run: dict[str, Any], notes: dict[str, Any] | None = None
    ) -> int:
        """Starts writing the state as step `state.step` and returns that step.

        `run` is JSON that says which run this is; `notes` is JSON that comes back with the state.
        Returns when the arrays have left the device, so the state may be donated. A failure of
        the save before comes out here.
        """
        step = int(state.step)
        items = _items(state)
        meta = {
            "format": FORMAT,
            "step": step,
            "run": run,
            "notes": notes or {},
            "arrays": {name: describe(item) for name, item in items.items()},
        }
        meta["digest"] = _digest(meta)
        args = ocp.args.Composite(
            meta=ocp.args.JsonSave(meta),
            **{name: ocp.args.StandardSave(item) for name, item in items.items()},
        )
        self._check_space(items)
        with self._full_disk_said_plainly():
            saved = self._manager.save(step, args=args, force=True)
        if not saved:
            raise RuntimeError(f"orbax did not save step {step} in {self.directory}")
        return step

    def _check_space(self, items: dict[str, Any]) -> None:
        """OSError ENOSPC if what this process writes does not fit on the disk: told before a byte
        is written, because a save that fails halfway comes out one save later, as noise.
        """
        self.wait()
        need = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(items)
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        )
        if shutil.disk_usage(self.directory).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))

    def restore(
        self, target: TrainState, check_run: Callable[[dict[str, Any]], None]
    ) -> tuple[TrainState | None, dict[str, Any]]:
        """(state, notes) of the newest step that verifies, laid out like `target`; (None, {}) if
        there is no checkpoint. Says which steps were skipped and why, and moves those aside once
        an older one verifies, because their step will be saved again.

        target: ShapeDtypeStructs with shardings; its `base` is passed through.
        check_run: given the stored `run`, raises when this is another one.
        Errors: UserError when there are checkpoints but none verifies, or shapes or dtypes differ.
        """
        wanted = _items(target)

        def read(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
            meta = _read_meta(self._manager, step)
            check_run(meta["run"])
            return _read_items(self._manager, step, meta, wanted), meta["notes"]

        step, found, skipped = _newest(self._manager, read, self.directory)
        if skipped:
            self._move_aside(skipped)
        if found is None:
            return None, {}
        items, notes = found
        optimizer = dict(items["optimizer"])
        count = optimizer.pop("step")
        opt_state = jax.tree.unflatten(
            jax.tree.structure(target.opt_state),
            [optimizer[path] for path in by_path(target.opt_state)],
        )
        if int(count) != step:
            raise UserError(f"checkpoint {self.directory}/{step} holds step {int(count)}")
        master = items.get("master")
        return TrainState(count, items["params"], opt_state, target.base, master), notes

    def verify(self, step: int, target: TrainState) -> None:
        """Reads a saved step back and compares every checksum. Errors: UserError."""
        self.wait()
        try:
            meta = _read_meta(self._manager, step)
            _read_items(self._manager, step, meta, _items(target))
        except Exception as error:
            raise UserError(
                f"the last checkpoint {self.directory}/{step} does not verify: {_short(error)}"
            ) from error

    def _move_aside(self, steps: list[int]) -> None:
        aside = self.directory.with_name(self.directory.name + "-damaged")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step in steps:
                for place in self.directory.iterdir():
                    if place.name.isdigit() and int(place.name) == step:
                        copies = sum(1 for _ in aside.glob(f"{step}.*"))
                        place.rename(aside / f"{step}.{copies}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
        self._manager.reload()


def load_params(
    directory: str | os.PathLike, target: Any, item: str = "params"
) -> tuple[int, Any]:
    """(step, parameters) of the newest verified checkpoint; changes nothing on disk.

    target: tree of ShapeDtypeStruct with shardings. item: "params", or "master" for the float32
    values of the trained ones, {path: array}, where there are any. Errors: UserError when there is
    no checkpoint.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise UserError(f"no checkpoints in {directory}: run `srpo train` first")
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    with ocp.CheckpointManager(directory, options=options) as manager:

        def read(step: int) -> dict[str, Any]:
            return _read_items(manager, step, _read_meta(manager, step), {item: target})

        step, items, _ = _newest(manager, read, directory)
    if items is None:
        raise UserError(f"no checkpoints in {directory}: run `srpo train` first")
    return step, items[item]


def _newest(
    manager: ocp.CheckpointManager, read: Callable[[int], Any], directory: pathlib.Path
) -> tuple[int, Any, list[int]]:
    """(step, what `read` gives, steps skipped) of the newest step that can be read."""
    skipped, some_content = [], False
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = read(step)
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax raises many kinds, bare Exception among them
            where = directory / str(step)
            empty = where.is_dir() and not any(where.iterdir())
            some_content |= not empty
            reason = "an empty folder" if empty else _short(error)
            _say(f"checkpoint {where} skipped: {reason}")
            skipped.append(step)
        else:
            return step, found, skipped
    if some_content:
        raise UserError(
            f"none of the checkpoints in {directory} verifies (steps {skipped}); "
            "move the folder away to start again"
        )
    return -1, None, skipped


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if not isinstance(meta, dict) or meta.get("digest") != _digest(meta):
        raise Damaged("its meta does not match its own digest")
    if meta["format"] != FORMAT:
        raise UserError(f"checkpoint {step} has format {meta['format']}; this is {FORMAT}")
    return meta


def _read_items(
    manager: ocp.CheckpointManager, step: int, meta: dict[str, Any], wanted: dict[str, Any]
) -> dict[str, Any]:
    """The items named in `wanted`, shapes and dtypes compared before and checksums after."""
    for name, target in wanted.items():
        stored = {path: tuple(facts[:2]) for path, facts in meta["arrays"][name].items()}
        asked = {path: (list(x.shape), x.dtype.name) for path, x in by_path(target).items()}
        for path in sorted(stored.keys() | asked.keys()):
            if stored.get(path) != asked.get(path):
                raise UserError(
                    f"checkpoint {step}: {name} {path} is {stored.get(path, 'absent')} there "
                    f"but {asked.get(path, 'absent')} in this run"
                )
    found = manager.restore(
        step,
        args=ocp.args.Composite(
            **{name: ocp.args.StandardRestore(target) for name, target in wanted.items()}
        ),
    )
    for name in wanted:
        now = describe(found[name])
        bad = [path for path, facts in now.items() if facts != meta["arrays"][name][path]]
        if bad:
            raise Damaged(f"checksum of {len(bad)} arrays differs, {name} {bad[0]} first")
    return {name: found[name] for name in wanted}


def _short(error: BaseException) -> str:
    """One line of an exception's first words; orbax writes pages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
