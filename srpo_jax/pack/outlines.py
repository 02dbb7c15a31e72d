"""A sidecar of a shard: the skeletons of its trees and the sizes of their prompts.

It holds what packing needs of a tree (skeleton.py) for every choice of labels and pairs, but no
token, text or pixel: about 20 bytes for a run of tokens. `srpo explore` writes it with the shard;
where it is missing, or not of this shard, tokenizer, prompt and image settings, it is made again.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.data_pipelines.sidecars.columns import (
    Columns,
    column_file,
    ragged,
    ragged_ok,
    read_columns,
    write_columns,
)
from srpo_jax.data_pipelines.tree_store import SUFFIX, read_manifest, read_shard
from srpo_jax.pack.prompts import Prompts
from srpo_jax.pack.skeleton import PromptSizes, Skeleton, Twig, skeleton_of
from srpo_jax.pack.tree import Branch, Tree

FORMAT = 1


class ShardOutlines(NamedTuple):
    """Of n trees with all their branches, in order; `*_ends` say where those of each tree end.

    ids, id_ends: their names, UTF-8. prompt: int64 [n, 4], PromptSizes. largest: int64 [n], the
    highest token id. parent, length, first: int32, nodes of the tries, see Skeleton. ends: int32,
    where the pieces of the reference path end. at, tip: int32, of the branches, see Twig.
    """

    ids: np.ndarray
    id_ends: np.ndarray
    prompt: np.ndarray
    largest: np.ndarray
    parent: np.ndarray
    length: np.ndarray
    first: np.ndarray
    node_ends: np.ndarray
    ends: np.ndarray
    piece_ends: np.ndarray
    at: np.ndarray
    tip: np.ndarray
    branch_ends: np.ndarray

    def skeletons(self, labels: np.ndarray) -> Iterator[Skeleton]:
        """The skeletons with the branches that have a label. labels: int8 [branches], below 0: none
        (sidecars.labels.ShardLabels).
        """
        ids = self.ids.tobytes()
        bounds = [
            np.concatenate([[0], ends]).tolist()
            for ends in (self.id_ends, self.node_ends, self.piece_ends, self.branch_ends)
        ]
        for i in range(len(self.prompt)):
            name, node, piece, branch = (slice(bound[i], bound[i + 1]) for bound in bounds)
            said = zip(self.at[branch].tolist(), self.tip[branch].tolist(), labels[branch].tolist())
            yield Skeleton(
                id=ids[name].decode(),
                prompt=PromptSizes(*self.prompt[i].tolist()),
                parent=self.parent[node].tolist(),
                length=self.length[node].tolist(),
                first=self.first[node].tolist(),
                ends=[0, *self.ends[piece].tolist()],
                branches=_labelled(said),
                largest=int(self.largest[i]),
            )


def shard_outlines(
    shard: pathlib.Path, prompts: Prompts, digest: str, *, keep: bool = True
) -> ShardOutlines:
    """Of a shard that is done: those beside it, else made from it, and kept if that is wished.

    digest: of all that decides how questions are asked and pictures shown (Asking.outlines). Raises
    RecordError as Prompts.outline.
    """
    found = read_columns(outlines_file(shard, digest), _checker(read_manifest(shard)["count"]))
    if found is not None:
        return ShardOutlines(**found)
    made = _columns([_whole(tree, prompts) for tree in read_shard(shard)])
    if keep:
        write_columns(outlines_file(shard, digest), made._asdict())
    return made


def keep_outlines(
    shard: pathlib.Path, trees: Iterable[Mapping[str, Any]], prompts: Prompts, digest: str
) -> None:
    """Makes the outlines of a shard that is done from the `trees` in it; writes them beside it."""
    made = _columns([_whole(tree, prompts) for tree in trees])
    write_columns(outlines_file(shard, digest), made._asdict())


def outlines_file(shard: pathlib.Path, digest: str) -> pathlib.Path:
    """Where the outlines of a shard lie. Raises RecordError when the shard is not done."""
    about = [FORMAT, read_manifest(shard)["fingerprint"], digest]
    return column_file(shard.parent, shard.name.removesuffix(SUFFIX), "outlines", about)


def _whole(record: Mapping[str, Any], prompts: Prompts) -> Skeleton:
    """The skeleton of a tree record with all its branches, in order, whatever their labels."""
    pieces = [np.asarray(piece, np.int32) for piece in (*record["steps"], record["reply"])]
    branches = [
        Branch(b["at"], np.asarray(b["tokens"], np.int32), True) for b in record["branches"]
    ]
    prompt = prompts.outline(dict(record))
    return skeleton_of(Tree(record["id"], prompt, tuple(pieces), tuple(branches)))


def _columns(skeletons: list[Skeleton]) -> ShardOutlines:
    ids, id_ends = ragged([np.frombuffer(s.id.encode(), np.uint8) for s in skeletons], np.uint8)
    parent, node_ends = ragged([np.asarray(s.parent) for s in skeletons], np.int32)
    ends, piece_ends = ragged([np.asarray(s.ends[1:]) for s in skeletons], np.int32)
    at, branch_ends = ragged([np.asarray([b.at for b in s.branches]) for s in skeletons], np.int32)
    return ShardOutlines(
        ids=ids,
        id_ends=id_ends,
        prompt=np.asarray([s.prompt for s in skeletons], np.int64).reshape(-1, 4),
        largest=np.asarray([s.largest for s in skeletons], np.int64),
        parent=parent,
        length=ragged([np.asarray(s.length) for s in skeletons], np.int32)[0],
        first=ragged([np.asarray(s.first) for s in skeletons], np.int32)[0],
        node_ends=node_ends,
        ends=ends,
        piece_ends=piece_ends,
        at=at,
        tip=ragged([np.asarray([b.tip for b in s.branches]) for s in skeletons], np.int32)[0],
        branch_ends=branch_ends,
    )


def _labelled(said: Iterable[tuple[int, int, int]]) -> tuple[Twig, ...]:
    """(at, tip, label) of all branches -> those that tree.remove_duplicates keeps."""
    labels: dict[tuple[int, int], set[int]] = {}
    for at, tip, label in said:
        if label >= 0:
            labels.setdefault((at, tip), set()).add(label)
    # In the order of the first of each: the branches of a tree are numbered by it.
    return tuple(
        Twig(at, tip, bool(found.pop())) for (at, tip), found in labels.items() if len(found) == 1
    )


def _checker(count: int):
    """Whether columns are tries of so many trees, so that walking them comes to an end."""

    def check(found: Columns) -> bool:
        o = ShardOutlines(**found)
        kinds = {name: np.int32 for name in ("parent", "length", "first", "ends", "at", "tip")}
        kinds |= {name: np.int64 for name in found if name.endswith("_ends")}
        kinds |= {"ids": np.uint8, "prompt": np.int64, "largest": np.int64}
        if any(found[name].dtype != kind for name, kind in kinds.items()):
            return False
        if o.prompt.shape != (count, len(PromptSizes._fields)) or o.largest.shape != (count,):
            return False
        lists = ((o.ids, o.id_ends), (o.parent, o.node_ends), (o.ends, o.piece_ends))
        if not all(ragged_ok(*pair, count) for pair in (*lists, (o.at, o.branch_ends))):
            return False
        if not o.parent.shape == o.length.shape == o.first.shape or o.at.shape != o.tip.shape:
            return False
        nodes = np.diff(o.node_ends, prepend=0)
        pieces = np.diff(o.piece_ends, prepend=0)
        branches = np.diff(o.branch_ends, prepend=0)
        number = np.arange(len(o.parent)) - np.repeat(o.node_ends - nodes, nodes)
        root = number == 0
        return bool(
            (nodes > 0).all()
            and (pieces > 0).all()
            and (np.where(root, o.parent == 0, (o.parent >= 0) & (o.parent < number))).all()
            and (np.where(root, o.length == 0, o.length > 0)).all()
            and ((o.ends > 0) & (o.ends < np.repeat(nodes, pieces))).all()
            and ((o.tip > 0) & (o.tip < np.repeat(nodes, branches))).all()
            and ((o.at >= 0) & (o.at < np.repeat(pieces, branches))).all()
        )

    return check
