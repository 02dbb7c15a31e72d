"""Packing's tables of a folder of trees, from sidecars: a start reads no record and no picture.

    shard -> outlines (outlines.py) -> with labels, the skeletons -> lines (items.py), kept as well

What is kept is named by all that decides it, so a changed prompt, judge or objective finds nothing
and works it out again. Processes that start together begin at different shards, and each finds what
the others have kept since.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.console import Bar
from srpo_jax.data_pipelines.sidecars.case_keys import shard_keys
from srpo_jax.data_pipelines.sidecars.columns import (
    Columns,
    column_file,
    read_columns,
    write_columns,
)
from srpo_jax.data_pipelines.sidecars.labels import (
    LEFT_OUT,
    LabelRules,
    Labels,
    ShardLabels,
    shard_labels,
)
from srpo_jax.data_pipelines.tree_store import SUFFIX, TreeSource, read_manifest
from srpo_jax.errors import UserError
from srpo_jax.keepers import look_again
from srpo_jax.pack.items import LINE, Lines, table_of
from srpo_jax.pack.outlines import shard_outlines
from srpo_jax.pack.prompts import Prompts
from srpo_jax.pack.skeleton import Skeleton

FORMAT = 1


class Process(NamedTuple):
    """Which of the processes that start together this one is. It says how far it is if it is the
    first."""

    index: int = 0
    count: int = 1


class ShardTables:
    """Of the trees of `source`, in its order.

    prompts, digest: see outlines.shard_outlines. labels: None when no branch has one; rules: what a
    label says. keep: whether anything is written.
    Raises UserError when something is to be judged and is not yet.
    """

    def __init__(
        self,
        source: TreeSource,
        prompts: Prompts,
        digest: str,
        labels: Labels | None = None,
        rules: LabelRules | None = None,
        process: Process | None = None,
        keep: bool = True,
    ):
        self._source, self._shards, self._numbers = source, source.shards, source.numbers
        self._digest, self._prompts = digest, prompts
        self._labels, self._rules = labels, rules or LabelRules()
        self._process, self._keep = process or Process(), keep
        # What decides the skeletons of a shard, besides the shard.
        judged = None if labels is None else [labels.fingerprint, *self._rules]
        self._about = [FORMAT, digest, judged]

    def __len__(self) -> int:
        return len(self._source)

    def table(self, about: Any, lines: Lines, *, keep: bool = True) -> np.ndarray:
        """LINE [n]: the lines of all trees in order, as items.table_of gives them. about: all that
        decides `lines`, as JSON; keep: whether the table is kept for a later start.
        """
        count = len(self._shards)
        parts: dict[int, np.ndarray] = {}
        bar = Bar() if not self._process.index else None
        for done in range(count):
            # Each process begins elsewhere, and comes to what the others have kept meanwhile.
            shard = (done + self._process.index * count // self._process.count) % count
            path = self._file(shard, "items", about)
            if keep and not path.exists():
                look_again(path.parent)
            found = read_columns(path, self._check(shard)) if keep else None
            if found is None:
                found = {"lines": table_of(enumerate(self._skeletons(shard)), lines)}
                if keep and self._keep:
                    write_columns(path, found)
                if bar:
                    bar.show(f"packing: {done + 1}/{count} shards looked at", done + 1, count)
            own = found["lines"]
            own["tree"] = self._numbers[shard][own["tree"]]
            parts[shard] = own[own["tree"] >= 0]
        table = np.concatenate([np.zeros(0, LINE), *(parts[shard] for shard in range(count))])
        return table[np.argsort(table["tree"], kind="stable")]

    def references(self) -> np.ndarray:
        """int8 [trees]: the labels of the reference paths (sidecars.labels)."""
        found = np.zeros(len(self), np.int8)
        for shard, numbers in enumerate(self._numbers):
            there = numbers >= 0
            found[numbers[there]] = self._labels_of(shard).reference[there]
        return found

    def place(self, tree: int) -> str:
        """Where what is kept about a tree lies, for messages."""
        shard = self._source.place(tree)
        return f"{shard.with_name(shard.name.removesuffix(SUFFIX))}.*.npz"

    def _skeletons(self, shard: int) -> Iterator[Skeleton]:
        path, count = self._shards[shard]
        outlines = shard_outlines(path, self._prompts, self._digest, keep=self._keep)
        labels = np.full(len(outlines.at), LEFT_OUT, np.int8)
        if self._labels is not None:
            found = self._labels_of(shard)
            if len(found.unknown):
                names = outlines.ids.tobytes(), [0, *outlines.id_ends]
                at = int(found.unknown[0])
                name = names[0][names[1][at] : names[1][at + 1]].decode()
                raise UserError(
                    f"{self._labels.folder} has no verdicts on all of tree {name!r}: run "
                    "`srpo judge` again"
                )
            labels = found.branch
        return outlines.skeletons(labels)

    def _labels_of(self, shard: int) -> ShardLabels:
        assert self._labels is not None
        place, reads = self._labels.folder, self._labels.reads
        keys = shard_keys(self._shards[shard][0], reads, place, keep=self._keep)
        return shard_labels(keys, self._labels, self._rules)

    def _file(self, shard: int, kind: str, about: Any) -> pathlib.Path:
        path = self._shards[shard][0]
        about = [read_manifest(path)["fingerprint"], self._about, about]
        return column_file(path.parent, path.name.removesuffix(SUFFIX), kind, about)

    def _check(self, shard: int):
        count = self._shards[shard][1]

        def check(found: Columns) -> bool:
            trees = found["lines"]["tree"]
            return (
                found["lines"].dtype == LINE
                and bool((np.diff(trees) >= 0).all())
                and (not len(trees) or (trees[0] >= 0 and trees[-1] < count))
            )

        return check
