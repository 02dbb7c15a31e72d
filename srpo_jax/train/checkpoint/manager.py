"""Checkpoints that are checked before they are trusted: orbax files plus our own checksums.

WORKDIR/checkpoints/STEP/{params,optimizer,meta,SEAL}, on a file system or in a bucket (folder.py).
`meta` is JSON: what run this is, its config, and shape, dtype and checksum of every array. SEAL is
over the files, see seal.py.
orbax 0.12 restores a file with a flipped bit without a word, and casts to another dtype without a
word, so both are compared here. docs/checkpoints.md says what is promised.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from srpo_jax.distributed.agreement import broadcast_json, in_short, run_on_all
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.train.checkpoint.array_checksum import describe, start
from srpo_jax.train.checkpoint.folder import Folder, open_folder
from srpo_jax.train.checkpoint.handlers import MetaSave, open_manager
from srpo_jax.train.checkpoint.retention import keep_of, ranked
from srpo_jax.train.checkpoint.seal import (
    Damaged,
    check_files,
    digest_of_meta,
    read_meta,
    space_needed,
)
from srpo_jax.train.train_state import TrainState

FORMAT = 2


def _items(state: TrainState) -> dict[str, Any]:
    """What of a state is stored, as plain dicts. `base` is not: it never changes."""
    items = {
        "params": state.params,
        "optimizer": {"step": state.step, **by_path(state.opt_state)},
    }
    return items if state.master is None else {**items, "master": state.master}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


class Checkpoints:
    """The checkpoints of one run. Use it in a `with`: leaving waits until the last one is on disk,
    which orbax alone does not do (a process that just ends exits 0 and has lost it).
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int = 2,
        keep_best: int = 0,
        best_metric: str = "loss",
        config: dict[str, Any] | None = None,
    ):
        """keep: newest steps that stay. keep_best: so many stay besides for the best value of
        `best_metric` (one of config.sections.BEST_METRICS) among the metrics that they were saved
        with. config: JSON that is stored in every step and read by nobody but people.

        directory: a folder, or gs://BUCKET/PATH. With several processes it is one that all of them
        see, and all methods are called by all of them in the same order.
        Errors: UserError when a bucket is not there or may not be written.
        """
        self._folder = open_folder(directory)
        self.directory = self._folder.path
        self.config = config
        self.skipped: list[tuple[int, str]] = []  # (step, why) that the last restore passed over
        self._keep = keep_of(directory, keep, keep_best, best_metric)
        if jax.process_index() == 0:  # what a killed run was writing: it may fill the disk
            self._folder.prepare()
        # Process 0's view, or the others might count other steps among those that were deleted.
        self._keep.scores = dict(broadcast_json(list(self._keep.scores.items())))
        with self._folder.failures():
            self._manager = open_manager(self._folder, preservation_policy=self._keep)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way and releases orbax's threads."""
        with self._folder.failures():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def wait(self) -> None:
        """Waits for the save under way; raises what went wrong with it."""
        with self._folder.failures():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def save(
        self,
        state: TrainState,
        run: dict[str, Any],
        notes: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> int:
        """Starts writing the state as step `state.step` and returns that step.

        `run` is JSON that says which run this is; `notes` is JSON that comes back with the state;
        `metrics` is what the best steps are chosen by. Returns when the arrays have left the
        device, so the state may be donated. A failure of the save before comes out here.
        Errors: OSError ENOSPC, before anything is written, when the disk has no room for it.
        """
        step = int(state.step)
        items = _items(state)
        self._check_space(items)
        said = {
            "format": FORMAT,
            "step": step,
            "run": run,
            "config": self.config,
            "notes": notes or {},
            "metrics": metrics or {},
        }
        said = json.loads(json.dumps(said))  # as it is now: it is written in the background
        self._keep.note(step, said["metrics"])
        sums: Future[dict[str, Callable[[], Any]]] = Future()

        def make() -> dict[str, Any]:
            meta = {**said, "arrays": {name: wait() for name, wait in sums.result().items()}}
            return {**meta, "digest": digest_of_meta(meta)}

        args = ocp.args.Composite(
            meta=MetaSave(make),
            **{name: ocp.args.StandardSave(item) for name, item in items.items()},
        )
        try:
            with self._folder.failures():
                saved = self._manager.save(step, args=args, force=True)
            # After orbax, which is slow to begin while checksums take the cores of a CPU.
            sums.set_result({name: start(item) for name, item in items.items()})
        except BaseException as error:
            sums.set_exception(error)  # or meta would wait for them
            raise
        if not saved:
            raise RuntimeError(f"orbax did not save step {step} in {self._folder}")
        return step

    def _check_space(self, items: dict[str, Any]) -> None:
        """OSError ENOSPC if a step does not fit on the disk: told before a byte is written and by
        all processes, because a save that fails halfway comes out one save later, as noise.
        """
        self.wait()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))  # of all processes together
        free = broadcast_json(self._folder.free_bytes())
        if free is not None and free < space_needed(size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def restore(
        self, target: TrainState, check_run: Callable[[dict[str, Any]], None]
    ) -> tuple[TrainState | None, dict[str, Any]]:
        """(state, notes) of the newest step that verifies, laid out like `target`; (None, {}) if
        there is no checkpoint. Says which steps were skipped and why, and moves those aside once
        an older one verifies, because their step will be saved again.

        target: ShapeDtypeStructs with shardings, of any mesh and any number of processes; its
        `base` is passed through.
        check_run: given the stored `run`, raises when this is another one.
        Errors: UserError when there are checkpoints but none verifies, or shapes or dtypes differ.
        """
        self.wait()
        wanted = _items(target)

        def read(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
            meta = _read_meta(self._folder, step)
            check_run(meta["run"])
            return _read_items(self._manager, self._folder, meta, wanted), meta["notes"]

        step, found, self.skipped = _walk(_newest_first(self._manager), read, self._folder)
        if self.skipped:
            self._move_aside([step for step, _ in self.skipped])
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
            raise UserError(f"checkpoint {self._folder}/{step} holds step {int(count)}")
        master = items.get("master")
        return TrainState(count, items["params"], opt_state, target.base, master), notes

    def verify(self, step: int, target: TrainState) -> None:
        """Reads a saved step back and compares every checksum.

        Errors: RunFailure. That storage loses something is not the user's mistake: started again,
        the run goes on from the newest step that verifies.
        """
        self.wait()
        try:
            meta = _read_meta(self._folder, step)
            _read_items(self._manager, self._folder, meta, _items(target))
        except Exception as error:
            raise RunFailure(
                f"the last checkpoint {self._folder}/{step} does not verify: {in_short(error)}; "
                "run the same command again to go on from the one before"
            ) from error

    def best(self) -> int | None:
        """The step with the best metric among those that there are; None if none has one."""
        return next(iter(ranked(_newest_first(self._manager), self._keep.scores)), None)

    def _move_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                self._folder.move_aside(step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
        with self._folder.failures():
            self._manager.reload()


def load_params(
    directory: str | os.PathLike,
    target: Any,
    item: str = "params",
    *,
    step: int | None = None,
    best: str = "",
) -> tuple[int, Any]:
    """(step, parameters) of the newest verified checkpoint; changes nothing on disk.

    target: tree of ShapeDtypeStruct with shardings. item: "params", or "master" for the
    float32 values of the trained ones, {path: array}, where there are any.
    step: this one and no other. best: the one with the best value of this metric, one of
    srpo_jax.config.sections.BEST_METRICS. Errors: UserError when there is none.
    """
    folder = open_folder(directory)
    none = f"no checkpoints in {folder}: run `srpo train` first"
    steps = broadcast_json(folder.steps()[::-1])
    if not steps:
        raise UserError(none)
    with (
        folder.failures(),
        open_manager(folder, read_only=True, save_interval_steps=0, create=False) as manager,
    ):

        def read(number: int) -> dict[str, Any]:
            meta = _read_meta(folder, number)
            return _read_items(manager, folder, meta, {item: target})

        if step is not None and step not in steps:
            listed = ", ".join(map(str, reversed(steps)))
            raise UserError(f"no checkpoint of step {step} in {folder}; there are {listed}")
        if best:
            steps = broadcast_json(ranked(steps, keep_of(directory, 0, 0, best).scores))
            if not steps:
                raise UserError(f"no checkpoint in {folder} was saved with the metric {best}")
        found, items, _ = _walk(steps if step is None else [step], read, folder)
    if items is None:
        raise UserError(none)
    return found, items[item]


def _newest_first(manager: ocp.CheckpointManager) -> list[int]:
    """The steps that process 0 sees, newest first."""
    return broadcast_json(sorted(map(int, manager.all_steps()), reverse=True))


def _walk(
    steps: Sequence[int], read: Callable[[int], Any], folder: Folder
) -> tuple[int, Any, list[tuple[int, str]]]:
    """(step, what `read` gives, [(step, why) skipped]) of the first step that can be read."""
    skipped, some_content = [], False
    for step in steps:
        try:
            found = read(step)
        except (
            UserError,
            RunFailure,
            PermissionError,
            MemoryError,
            jax.errors.JaxRuntimeError,
        ):
            raise
        except Exception as error:  # orbax raises many kinds, bare Exception among them
            reason = in_short(error)
            some_content |= reason != "an empty folder"
            _say(f"checkpoint {folder / str(step)} skipped: {reason}")
            skipped.append((step, reason))
        else:
            return step, found, skipped
    if some_content:
        tried = [step for step, _ in skipped]
        raise UserError(
            f"none of the checkpoints tried in {folder} verifies (steps {tried}); to train, "
            "move the folder away and start again; to export, give another --step"
        )
    return -1, None, skipped


def _read_meta(folder: Folder, step: int) -> dict[str, Any]:
    """The meta of a step. Damaged on all processes when it is not what was saved for any of them;
    UserError for one of another version."""
    meta = run_on_all(lambda: read_meta((folder / str(step)).path, step), Damaged)
    if meta["format"] != FORMAT:
        raise UserError(
            f"checkpoint {folder / str(step)} has format {meta['format']}, this version reads "
            f"{FORMAT}: go on with the version that wrote it, or use another --workdir"
        )
    return meta


def _read_items(
    manager: ocp.CheckpointManager,
    folder: Folder,
    meta: dict[str, Any],
    wanted: dict[str, Any],
) -> dict[str, Any]:
    """The items named in `wanted`. Shapes, dtypes and files are compared before they are read,
    checksums after."""
    step, whole = meta["step"], wanted.keys() == meta["arrays"].keys()
    for name, target in wanted.items():
        stored = {path: tuple(facts[:2]) for path, facts in meta["arrays"].get(name, {}).items()}
        asked = {path: (list(x.shape), x.dtype.name) for path, x in by_path(target).items()}
        for path in sorted(stored.keys() | asked.keys()):
            if stored.get(path) != asked.get(path):
                raise UserError(
                    f"checkpoint {step}: {name} {path} is {stored.get(path, 'absent')} there "
                    f"but {asked.get(path, 'absent')} in this run"
                )
    # Before orbax reads them: one process that fails there would leave the others waiting.
    share = dict(part=jax.process_index(), parts=jax.process_count())
    items = () if whole else ("meta", *wanted)
    run_on_all(lambda: check_files((folder / str(step)).path, items, **share), Damaged)
    args = {name: ocp.args.StandardRestore(target) for name, target in wanted.items()}
    with folder.failures():
        found = manager.restore(step, args=ocp.args.Composite(**args))
    for name in wanted:
        now = describe(found[name])
        bad = [path for path, facts in now.items() if facts != meta["arrays"][name][path]]
        if bad:
            raise Damaged(f"checksum of {len(bad)} arrays differs, {name} {bad[0]} first")
    return {name: found[name] for name in wanted}
