"""Which shards of an exploration this worker makes, and when one of them is written.

The engine is to have questions to do until the last one, so the next shard is begun before the one
before it is whole: several may be at work, in the order in which they were taken.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from srpo_jax.console import Working, say
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_store import shard_done, write_shard
from srpo_jax.explore.explorer import Explorer, ReferencesOnly
from srpo_jax.explore.progress import Progress
from srpo_jax.explore.shard_leases import ShardLeases, pause

ShardTold = Callable[[str, int, float], None]  # (roots or trees, questions, seconds)
Trees = list[dict[str, Any] | None]


class ShardMaker:
    """Makes shards of one folder. paths, records: of all its shards. outliner: is given every shard
    that was made here, with its trees, if there is one.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        records: Sequence[Sequence[Record]],
        explorer: Explorer | ReferencesOnly,
        progress: Progress,
        on_shard: ShardTold | None,
        outliner: Callable[[pathlib.Path, Sequence[dict[str, Any]]], None] | None = None,
    ):
        self._paths, self._records, self._explorer = paths, records, explorer
        self._progress, self._on_shard, self._outliner = progress, on_shard, outliner

    def make(self, todo: Sequence[int]) -> None:
        """Returns when all shards of `todo` are there, whoever made them: those of a worker that
        died are made here."""
        names = {self._paths[i].name: i for i in todo}  # keeps the order
        folder = self._paths[0].parent
        told = False
        with ShardLeases(folder.with_name(folder.name + ".claims")) as leases:
            while names:
                self._make_free(names, leases)
                if not names:
                    break
                if not told:
                    say(f"explore: {len(names)} shards are being made by others")
                    told = True
                pause()
                for name in [n for n, i in names.items() if shard_done(self._paths[i])]:
                    self._progress.skip(len(self._records[names.pop(name)]))

    def _make_free(self, names: dict[str, int], leases: ShardLeases) -> None:
        """Makes the shards of `names` that nobody has, each while its lease is held, and takes them
        out of `names`."""
        begun: dict[int, Trees] = {}
        missing: dict[int, int] = {}

        def questions() -> Iterator[tuple[tuple[int, int], Record]]:
            while (name := leases.take(list(names))) is not None:
                i = names.pop(name)
                if shard_done(self._paths[i]):  # since the first look: another worker was faster
                    self._progress.skip(len(self._records[i]))
                    leases.release(name)
                    continue
                begun[i] = [None] * len(self._records[i])
                missing[i] = len(self._records[i])
                for j, record in enumerate(self._records[i]):
                    yield (i, j), record

        work = Working()
        for (i, j), tree in self._explorer.stream(questions()):
            begun[i][j] = tree
            missing[i] -= 1
            self._progress(tree)
            if missing[i]:
                continue
            self._write(i, begun.pop(i))
            leases.release(self._paths[i].name)
            if self._on_shard is not None:
                self._on_shard(self._paths[i].parent.name, len(self._records[i]), work.seconds())
            work = Working()

    def _write(self, i: int, trees: Trees) -> None:
        """Writes a shard, unless a worker has that took this one for dead."""
        found = [tree for tree in trees if tree is not None]
        if not shard_done(self._paths[i]):
            write_shard(self._paths[i], found)
        if self._outliner:
            self._outliner(self._paths[i], found)
