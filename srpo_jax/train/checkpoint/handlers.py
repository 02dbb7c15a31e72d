"""How a step is written: orbax's handlers, with our checksums beside what they write.

Each process hashes the files that it wrote as soon as an item of it is on disk, while other items
and other processes are still writing; process 0 gathers these sums into the seal (seal.py), and
reads only the small files that it makes of all. Checksums of arrays (array_checksum.py) are started
before `save` returns and waited for in the background, by meta, which holds them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.path.atomicity_types import ValidationError  # no public name
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals as CommitFuture

from srpo_jax.places import is_moving, move_folder
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
        said = f"Checkpoint commit was successful to {self.get_final()}"
        if not self.get_final().name.isdecimal():  # only the step is sealed
            await asyncio.to_thread((folder / name).write_text, said)
            return
        # What AtomicRenameTemporaryPath does (orbax 0.12), with the seal before the new name.
        store: Any = self._checkpoint_metadata_store
        store.wait_until_finished()
        store.update(
            file_path=self.get() / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=time.time_ns()
        )
        store.wait_until_finished()
        (folder / name).write_text(said)
        await asyncio.to_thread(write_seal, folder)
        final = pathlib.Path(self.get_final())
        await asyncio.to_thread(move_folder, folder, final, last=(SEAL,))


class ArraysHandler(ocp.StandardCheckpointHandler):
    """orbax's own for a tree of arrays; what this process writes is hashed by it."""

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any]:
        written = await super().async_save(directory, *args, **kwargs) or []

        def claim() -> None:
            for each in written:
                each.result()
            claim_files(pathlib.Path(directory), jax.process_index())

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
                pathlib.Path(directory, name).write_text(json.dumps(meta), encoding="utf-8")

        return [CommitFuture(write(), name="meta")]

    @classmethod
    def typestr(cls) -> str:
        return ocp.JsonCheckpointHandler.typestr()


def registry() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """The handlers for ocp.CheckpointManager: of meta, and of every other item."""
    found = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays = ArraysHandler()
    found.add("meta", MetaSave, MetaHandler())
    for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
        found.add(None, args, arrays)
    return found
