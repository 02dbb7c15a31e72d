"""By which key the verdict on each branch of a shard is found, without its texts and pictures.

A key is a digest of what is judged (verdict_store.case_key), so it takes the whole record to work
it out, with its pictures' bytes. `srpo judge` has the record at hand and keeps the keys with the
verdicts; where they are missing, they are made by reading the shard once more.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.data_pipelines.sidecars.columns import (
    column_file,
    ragged,
    ragged_ok,
    read_columns,
    write_columns,
)
from srpo_jax.data_pipelines.tree_schema import path_steps
from srpo_jax.data_pipelines.tree_store import SUFFIX, read_manifest, read_shard
from srpo_jax.data_pipelines.verdict_store import tree_key, why_not_judged

FORMAT = 1
KEY_BYTES = 16
# What may be judged: nothing; what the path format reads whole; what it does not (irregular).
NOTHING, REGULAR, IRREGULAR = range(3)


class CaseKeys(NamedTuple):
    """Of a shard of n trees with m branches, in order. keys: bytes of a case_key, 0 where there is
    nothing to judge. ends: where each tree's branches end.
    """

    reference: np.ndarray  # S16 [n]
    has_reference: np.ndarray  # bool [n]
    branch: np.ndarray  # S16 [m]
    state: np.ndarray  # uint8 [m]: NOTHING, REGULAR or IRREGULAR
    ends: np.ndarray  # int64 [n]


def shard_keys(
    shard: pathlib.Path, reads: Sequence[str], place: pathlib.Path, *, keep: bool = True
) -> CaseKeys:
    """The keys of a shard that is done, for judges that read these fields of a record: those kept
    in the folder `place`, else made from the shard, and kept if that is wished.
    """
    manifest = read_manifest(shard)
    path, count = _file(shard, manifest, reads, place), manifest["count"]

    def check(found: dict[str, np.ndarray]) -> bool:
        keys = CaseKeys(**found)
        return (
            ragged_ok(keys.branch, keys.ends, count)
            and keys.reference.shape == keys.has_reference.shape == (count,)
            and keys.state.shape == keys.branch.shape
            and keys.reference.dtype == keys.branch.dtype == f"S{KEY_BYTES}"
            and keys.state.dtype == np.uint8
        )

    found = read_columns(path, check)
    if found is not None:
        return CaseKeys(**found)
    keeper = KeyKeeper(shard, reads, place)
    for _ in keeper.watch(read_shard(shard)):
        pass
    return keeper.keep() if keep else keeper.keys()


class KeyKeeper:
    """Works out the keys of a shard while somebody else reads it."""

    def __init__(self, shard: pathlib.Path, reads: Sequence[str], place: pathlib.Path):
        self._path = _file(shard, read_manifest(shard), reads, place)
        self._reads = tuple(reads)
        self._references: list[bytes] = []
        self._branches: list[np.ndarray] = []
        self._states: list[np.ndarray] = []

    def watch(self, trees: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The trees of the shard, unchanged."""
        for tree in trees:
            self._add(tree)
            yield tree

    def keep(self) -> CaseKeys:
        """The keys, which are written as well."""
        keys = self.keys()
        if not self._path.is_file():
            write_columns(self._path, keys._asdict())
        return keys

    def keys(self) -> CaseKeys:
        """The keys, when all trees have been seen."""
        branch, ends = ragged(self._branches, f"S{KEY_BYTES}")
        return CaseKeys(
            reference=np.asarray(self._references, f"S{KEY_BYTES}"),
            has_reference=np.asarray([bool(key) for key in self._references], bool),
            branch=branch,
            state=ragged(self._states, np.uint8)[0],
            ends=ends,
        )

    def _add(self, tree: Mapping[str, Any]) -> None:
        def key(steps: Sequence[str], reply: str) -> bytes:
            return bytes.fromhex(tree_key(tree, steps, reply, self._reads))

        reference = key(tree["step_texts"], tree["reply_text"]) if tree["steps"] else b""
        self._references.append(reference)
        keys, states = [], []
        for branch in tree["branches"]:
            state = NOTHING
            if not why_not_judged(branch, keep_irregular=True):
                state = IRREGULAR if why_not_judged(branch, keep_irregular=False) else REGULAR
            states.append(state)
            keys.append(key(path_steps(tree, branch), branch["reply_text"]) if state else b"")
        self._branches.append(np.asarray(keys, f"S{KEY_BYTES}"))
        self._states.append(np.asarray(states, np.uint8))


def _file(
    shard: pathlib.Path, manifest: Mapping[str, Any], reads: Sequence[str], place: pathlib.Path
) -> pathlib.Path:
    stem = shard.name.removesuffix(SUFFIX)
    about = [FORMAT, manifest["fingerprint"], sorted(set(reads))]
    return column_file(place, stem, "keys", about)
