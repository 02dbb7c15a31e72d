"""Which shards of an exploration this worker makes, and when one of them is written.

The engine is to have questions to do until the last one, so the next shard is begun before the one
before it is whole: several may be at work, in the order in which they were taken.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from srpo_jax.console import Working, say
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_store import shard_done, write_shard
from srpo_jax.explore.explorer import Explorer, ReferencesOnly
from srpo_jax.explore.progress import Progress
from srpo_jax.explore.shard_leases import ShardLeases, pause
from srpo_jax.explore.workers import Worker
from srpo_jax.keepers import look_again

ShardTold = Callable[[str, int, float], None]  # (roots or trees, questions, seconds)
Trees = dict[int, dict[str, Any] | None]  # by the number of the question in its shard


class ShardMaker:
    """Makes shards of one folder, as one worker. paths, records: of all its shards. outliner: is
    given every shard that was made here, with its trees, if there is one. done: whether a shard is
    there.
    """

    def __init__(
        self,
        worker: Worker,
        paths: Sequence[pathlib.Path],
        records: Sequence[Sequence[Record]],
        explorer: Explorer | ReferencesOnly,
        progress: Progress,
        on_shard: ShardTold | None,
        outliner: Callable[[pathlib.Path, Sequence[dict[str, Any]]], None] | None = None,
        *,
        done: Callable[[pathlib.Path], bool] = shard_done,
    ):
        self._worker, self._paths, self._records = worker, paths, records
        self._explorer, self._outliner, self._is_done = explorer, outliner, done
        self._progress, self._on_shard = progress, on_shard

    def make(self, todo: Sequence[int]) -> None:
        """Returns when all shards of `todo` are there, whoever made them: those of a worker that
        died are made here. Of processes together, the one that writes chooses for all.
        """
        first = self._worker.index * len(todo) // self._worker.count  # apart from each other
        names = {self._paths[i].name: i for i in (*todo[first:], *todo[:first])}
        folder = self._paths[0].parent
        with contextlib.ExitStack() as stack:
            leases = None
            if self._worker.writes:
                claims = folder.with_name(folder.name + ".claims")
                leases = stack.enter_context(ShardLeases(claims))
            self._make_free(names, leases)
            told = False
            while self._worker.says(lambda: bool(names)):
                if leases is not None:
                    if not told:
                        say(f"explore: {len(names)} shards are being made by others")
                        told = True
                    pause()
                    look_again(folder)
                    for name in [n for n, i in names.items() if self._is_done(self._paths[i])]:
                        self._progress.skip(len(self._records[names.pop(name)]))
                self._make_free(names, leases)

    def _make_free(self, names: dict[str, int], leases: ShardLeases | None) -> None:
        """Makes the shards of `names` that nobody has, each while its lease is held, and takes them
        out of `names`."""
        begun: dict[int, Trees] = {}

        def questions() -> Iterator[tuple[tuple[int, int], Record]]:
            while (i := self._worker.says(lambda: self._take(names, leases))) is not None:
                for j, record in enumerate(self._records[i]):
                    yield (i, j), record

        work = Working()
        for (i, j), tree in self._explorer.stream(questions()):
            begun.setdefault(i, {})[j] = tree
            self._progress(tree)
            if len(begun[i]) < len(self._records[i]):
                continue
            trees = [tree for _, tree in sorted(begun.pop(i).items()) if tree is not None]
            if leases is None:
                continue
            self._write(i, trees)
            leases.release(self._paths[i].name)
            if self._on_shard is not None:
                self._on_shard(self._paths[i].parent.name, len(self._records[i]), work.seconds())
            work = Working()

    def _take(self, names: dict[str, int], leases: ShardLeases | None) -> int | None:
        """The next shard to make, its lease taken; None when others have all that are left."""
        while leases is not None and (name := leases.take(list(names))) is not None:
            i = names.pop(name)
            look_again(self._paths[i].parent)
            if not self._is_done(self._paths[i]):
                return i
            # Since the first look another worker was faster.
            self._progress.skip(len(self._records[i]))
            leases.release(name)
        return None

    def _write(self, i: int, trees: Sequence[dict[str, Any]]) -> None:
        """Writes a shard, unless a worker has that took this one for dead."""
        if not self._is_done(self._paths[i]):
            write_shard(self._paths[i], trees)
        if self._outliner is not None:
            self._outliner(self._paths[i], trees)
