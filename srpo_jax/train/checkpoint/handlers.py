"""How a step is written: orbax's handlers, with our checksums beside what they write.

On a file system each process hashes the files that it wrote as soon as an item of it is on disk,
while other items and other processes are still writing; process 0 gathers these sums into the seal
(seal.py), and reads only the small files that it makes of all. Checksums of arrays
(array_checksum.py) are started before `save` returns and waited for in the background, by meta,
which holds them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint._src.path.atomicity_types import ValidationError  # no public name
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals as CommitFuture

from srpo_jax.places import is_moving, move_folder
from srpo_jax.train.checkpoint.folder import Folder, open_folder
from srpo_jax.train.checkpoint.seal import META, SEAL, claim_files, write_seal


class SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """orbax's folder of a step that is being written, which gets its name when it is whole: here it
    is sealed just before. Its items lie in it by their own names from the beginning. Called by
    process 0, in the background, when all have written theirs.
    """

    @classmethod
    def from_final(cls, final_path: Any, **options: Any) -> SealedPath:
        found: Any = super().from_final(final_path, **options)
        if not final_path.name.isdecimal():  # an item: what is one of a step is not moved
            found._tmp_path = final_path
        return found

    @classmethod
    async def validate_final(cls, final_path: Any) -> None:
        await super().validate_final(final_path)
        if is_moving(pathlib.Path(final_path)):
            raise ValidationError(f"{final_path} is not all there")

    async def finalize(self) -> None:
        folder, name = pathlib.Path(self.get()), ocp.path.atomicity.COMMIT_SUCCESS_FILE
        if self.get_final().name.isdecimal():  # only the step is sealed
            _note_commit(self)
        (folder / name).write_bytes(_said(self))
        if self.get_final().name.isdecimal():
            await asyncio.to_thread(write_seal, folder)
            final = pathlib.Path(self.get_final())
            await asyncio.to_thread(move_folder, folder, final, last=(SEAL,))


class MarkedPath(ocp.path.atomicity.CommitFileTemporaryPath):
    """The same in a bucket: a step has its name from the beginning, and is whole when its marker is
    there, which is written behind the seal.
    """

    async def finalize(self) -> None:
        folder, name = open_folder(self.get()), ocp.path.atomicity.COMMIT_SUCCESS_FILE
        if self.get_final().name.isdecimal():
            _note_commit(self)
            await asyncio.to_thread(write_seal, folder.path, {name: _said(self)})
        await asyncio.to_thread(folder.write, name, _said(self))


def _said(path: Any) -> bytes:
    """What orbax writes into its marker."""
    return f"Checkpoint commit was successful to {path.get_final()}".encode()


def _note_commit(path: Any) -> None:
    """What orbax's temporary paths do when a step is whole (orbax 0.12)."""
    store: Any = path._checkpoint_metadata_store
    store.wait_until_finished()
    store.update(
        file_path=path.get() / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=time.time_ns()
    )
    store.wait_until_finished()


class ArraysHandler(ocp.StandardCheckpointHandler):
    """orbax's own for a tree of arrays; what this process writes is hashed by it."""

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any]:
        written = await super().async_save(directory, *args, **kwargs) or []

        def claim() -> None:
            for each in written:
                each.result()
            claim_files(directory, jax.process_index())

        with_one = ThreadPoolExecutor(1, "seal")
        claimed = with_one.submit(claim)
        with_one.shutdown(wait=False)
        return [claimed]

    @classmethod
    def typestr(cls) -> str:
        return ocp.StandardCheckpointHandler.typestr()  # read by anyone who has orbax


@dataclasses.dataclass
class MetaSave(ocp.args.CheckpointArgs):
    """JSON that is made in the background; a failure of `make` is one of the save."""

    make: Callable[[], dict[str, Any]]


class MetaHandler(ocp.JsonCheckpointHandler):
    """Writes what a MetaSave makes."""

    async def async_save(self, directory: Any, item: Any = None, args: Any = None) -> list[Any]:
        async def write() -> None:
            if jax.process_index() == 0:
                meta = await asyncio.to_thread(args.make)
                name = pathlib.PurePath(META).name
                folder = open_folder(directory)
                await asyncio.to_thread(folder.write, name, json.dumps(meta).encode())

        return [CommitFuture(write(), name="meta")]

    @classmethod
    def typestr(cls) -> str:
        return ocp.JsonCheckpointHandler.typestr()


@dataclasses.dataclass
class _StepNames(ocp.path.step.NameFormat):
    """orbax's view of which steps there are, which is ours."""

    folder: Folder

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        return (self.find_step(base_path, step) for step in self.folder.steps())

    def find_step(self, base_path: Any, step: int) -> Any:
        return ocp.path.step.Metadata(step=step, path=epath.Path(base_path) / str(step))


class _Remover:
    """orbax's deleter of steps: process 0 removes them, in the background."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def delete(self, step: int) -> None:
        if jax.process_index() == 0:
            self._folder.remove(step)

    def delete_steps(self, steps: Sequence[int]) -> None:
        for step in steps:
            self.delete(step)

    def close(self) -> None:
        pass


def open_manager(folder: Folder, **options: Any) -> ocp.CheckpointManager:
    """orbax's manager of the folder, which sees, writes and removes steps in our ways. options: of
    ocp.CheckpointManagerOptions.
    """
    of_place: dict[str, Any] = dict(
        temporary_path_class=MarkedPath if folder.in_place else SealedPath,
        step_name_format=_StepNames(folder),
    )
    if folder.in_place:
        of_place["create"] = False  # there is no folder to make, and orbax would make a bucket
        # A step that cannot be begun fails at once: threads would wait for its folder for minutes.
        begin = ocp.AsyncOptions(create_directories_asynchronously=False)
        of_place["async_options"] = begin
    found: Any = ocp.CheckpointManager(
        epath.Path(folder.path),
        options=ocp.CheckpointManagerOptions(**{**options, **of_place}),
        handler_registry=_registry(),
    )
    found._checkpoint_deleter = _Remover(folder)
    return found


def _registry() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """The handlers for ocp.CheckpointManager: of meta, and of every other item."""
    found = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays = ArraysHandler()
    found.add("meta", MetaSave, MetaHandler())
    for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
        found.add(None, args, arrays)
    return found
