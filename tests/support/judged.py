"""Trees with the verdicts that a test wants: joined in memory, or on disk as `srpo judge` leaves
them.

Verdicts are keyed by what was judged, so branches that are to have verdicts of their own need
replies (or steps) of their own: `branch` gives each one.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.tree_schema import FORMAT
from srpo_jax.data_pipelines.tree_store import SUFFIX, shard_path, write_shard
from srpo_jax.data_pipelines.verdict_store import (
    FIELDS,
    FOLDER,
    VerdictSet,
    open_set,
    unjudged,
    why_not_judged,
)

PROVENANCE = {"policy_digest": "0", "sampler": {}, "seed": 0, "created_by": "test"}


def verdict(reply: str = "SAFE", path: str | None = None, **more: Any) -> dict[str, Any]:
    """A verdict; of the path the reply's, unless said otherwise."""
    return {**unjudged(""), "reply_verdict": reply, "path_verdict": path or reply, **more}


def branch(at: int = 0, k: int = 0, judged: str | None = "SAFE", **changes: Any) -> dict[str, Any]:
    """A branch with a reply of its own, joined with its verdict; judged None: without one."""
    return {
        "at": at,
        "k": k,
        "parent": None,
        "tokens": [5 + at, 6 + k],
        "text": f"Reply: {at} {k}",
        "finished": True,
        "logp": -1.5,
        "status": "ok",
        "step_texts": [],
        "reply_text": f"{at} {k}",
        **({} if judged is None else verdict(judged)),
        **changes,
    }


def tree(name: str = "t0", **changes: Any) -> dict[str, Any]:
    """A tree record of two steps, without pictures, joined with its verdicts."""
    return {
        "format": FORMAT,
        "id": name,
        "question": f"What is {name}?",
        "category": None,
        "risky": None,
        "unsafe_reply": None,
        "source": "",
        "license": "",
        "meta": {},
        "images": [],
        "path_format": {},
        "steps": [[1, 2], [3]],
        "reply": [4],
        "step_texts": ["a", "b"],
        "reply_text": "c",
        "branches": [branch(), branch(1)],
        "provenance": PROVENANCE,
        "reference_verdict": verdict("SAFE"),
        **changes,
    }


def plain(joined: Mapping[str, Any]) -> dict[str, Any]:
    """The tree record alone, as exploration writes it."""
    made = {name: value for name, value in joined.items() if name != "reference_verdict"}
    made["branches"] = [
        {name: value for name, value in branch.items() if name not in FIELDS}
        for branch in joined["branches"]
    ]
    return made


def write_trees(folder: pathlib.Path, *shards: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """The shards, without any verdict. Returns the folder."""
    for number, shard in enumerate(shards):
        write_shard(shard_path(folder, number, len(shards)), [plain(tree) for tree in shard])
    return folder


def write_judged(
    folder: pathlib.Path, *shards: Sequence[Mapping[str, Any]], name: str = "by-hand"
) -> pathlib.Path:
    """Shards of joined trees as trees in `folder` and a set of verdicts beside it. Returns folder.

    What nobody is asked about (an unfinished branch, one without a reply) gets no verdict.
    """
    write_trees(folder, *shards)
    write_verdicts(folder, *shards, name=name)
    return folder


def write_verdicts(
    folder: pathlib.Path, *shards: Sequence[Mapping[str, Any]], name: str = "by-hand"
) -> VerdictSet:
    """The verdicts of joined trees alone, beside the folder of the trees."""
    judge = {"arbiter": name, "kind": name, "digest": f"digest of {name}", "spec": {}, "reads": []}
    verdicts = open_set(folder.parent / FOLDER / name, judge)
    for number, shard in enumerate(shards):
        rows: dict[str, dict[str, Any]] = {}
        for joined in shard:
            for key, row in judged_contents(joined, verdicts):
                if rows.setdefault(key, row) != row:
                    raise ValueError(f"{joined['id']}: equal contents with different verdicts")
        stem = shard_path(folder, number, len(shards)).name.removesuffix(SUFFIX)
        verdicts.write(stem, [{"key": key, **row} for key, row in rows.items()])
    return verdicts


def judged_contents(joined: Mapping[str, Any], verdicts: VerdictSet):
    """(key, verdict) of all that is judged of a joined tree."""
    if len(joined["reply"]):
        key = verdicts.key(joined, joined["step_texts"], joined["reply_text"])
        yield key, joined["reference_verdict"]
    for branch in joined["branches"]:
        if not why_not_judged(branch, keep_irregular=True):
            steps = [*joined["step_texts"][: branch["at"]], *branch["step_texts"]]
            row = {name: branch[name] for name in FIELDS}
            yield verdicts.key(joined, steps, branch["reply_text"]), row
