"""The tree record: what is in it, and what is refused, on the way in and on the way out."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from srpo_jax.data_pipelines.records import Record, RecordError
from srpo_jax.data_pipelines.tree_schema import make_tree_record, record_of
from srpo_jax.data_pipelines.tree_store import read_shards, shard_path, write_shard
from tests.support import judged
from tests.support.judged import PROVENANCE


def branch(at=0, k=0, **changes) -> dict:
    return judged.branch(at, k, None, **changes)


def tree(name="t0", **changes) -> dict:
    image = {"name": "a", "sha256": hashlib.sha256(b"z").hexdigest(), "data": b"z"}
    return judged.plain(judged.tree(name, images=[image], **changes))


def test_make_tree_record(tmp_path):
    """A record's picture bytes go in as they are, so training needs the tree records alone."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    record = Record(
        id="r",
        images=("a.png",),
        question="q",
        steps=("s",),
        reply="t",
        category="violence",
        risky=True,
        unsafe_reply="u",
        source="web",
        license="CC0",
        meta={"scene": 3},
        root=str(tmp_path),
    )
    pieces = [np.asarray([1]), np.asarray([2])]
    made = make_tree_record(record, pieces, [branch()], PROVENANCE, {"kind": "lines"})
    write_shard(shard_path(tmp_path / "trees", 0, 1), [made])
    back = read_shards(tmp_path / "trees")[0]
    assert back["images"][0]["data"] == (tmp_path / "a.png").read_bytes()
    assert back["steps"] == [[1]] and back["reply"] == [2] and back["step_texts"] == ["s"]
    assert back["path_format"] == {"kind": "lines"}
    assert record_of(back) == dataclasses.replace(record, root=".")


def test_a_tree_may_have_no_reference_path_yet(tmp_path):
    """Whole paths are sampled before one of them is chosen: they leave at 0, and nothing of a
    reference path may be there.
    """
    roots = tree(
        steps=[], reply=[], step_texts=[], reply_text="", branches=[branch(), branch(0, 1)]
    )
    write_shard(shard_path(tmp_path, 0, 1), [roots])
    assert read_shards(tmp_path)[0] == roots
    late = {**roots, "branches": [branch(1)]}
    with pytest.raises(RecordError, match="a path of 0 steps"):
        write_shard(shard_path(tmp_path, 0, 1), [late])


def test_a_reference_path_may_be_a_reply_alone_and_a_branch_may_leave_before_it(tmp_path):
    """Data from elsewhere has whole replies, whose log-prob nobody has measured: such a tree is
    written and read, with its branches at 0; a branch may also leave right before a reply.
    """
    reply_only = tree(steps=[], step_texts=[], branches=[branch(logp=None), branch(0, 1)])
    late = tree("t1", branches=[branch(2)])
    write_shard(shard_path(tmp_path, 0, 1), [reply_only, late])
    assert list(read_shards(tmp_path)) == [reply_only, late]


BAD = [
    (
        lambda t: t.update(format=1),
        "format is 1, this version reads 2; sample the trees again with `srpo explore` in another "
        "workdir",
    ),
    (lambda t: t.pop("risky"), "the tree: field 'risky' is missing"),
    (lambda t: t.update(more=1), "the tree: unknown field 'more'"),
    (lambda t: t.update(id=""), "id is empty"),
    (lambda t: t.update(risky="no"), "risky must be bool, not str"),
    (lambda t: t.update(category="x"), "category 'x' is not one of the nine"),
    (lambda t: t["images"][0].update(data=b"y"), "images[0]: the bytes do not match their sha256"),
    (lambda t: t.update(steps=[]), "2 step_texts for 0 steps"),
    (lambda t: t["steps"].append([]), "steps[2] is empty"),
    (lambda t: t.update(reply=[-1]), "reply holds -1, which is no token id"),
    (lambda t: t["step_texts"].pop(), "1 step_texts for 2 steps"),
    (lambda t: t["branches"][1].update(at=3), "branches[1].at is 3, a path of 2 steps has 0..2"),
    (lambda t: t["branches"][1].update(at=0), "branches[1]: at 0, k 0 is there twice"),
    (lambda t: t["branches"][0].update(tokens=[]), "branches[0].tokens is empty"),
    (
        lambda t: t["branches"][0].update(tokens=[True]),
        "branches[0].tokens holds True, which is no token id",
    ),
    (lambda t: t["branches"][0].update(logp=float("nan")), "branches[0].logp is not finite"),
    (
        lambda t: t["branches"][0].update(reply_verdict="safe"),
        "branches[0]: unknown field 'reply_verdict'",
    ),
    (
        lambda t: t["branches"][0].update(parent=0),
        "branches[0].parent is 0; this version knows only null",
    ),
    (
        lambda t: t["branches"][0].update(step_texts=["a", 3]),
        "branches[0].step_texts[1] must be str, not int",
    ),
    (
        lambda t: t["branches"][0].update(reply_text=3),
        "branches[0].reply_text must be str, not int",
    ),
    (lambda t: t.update(meta=[]), "meta must be dict, not list"),
    (lambda t: t.update(reply_text=" "), "reply_text is empty"),
    (lambda t: t["branches"][0].pop("logp"), "branches[0]: field 'logp' is missing"),
    (lambda t: t.update(provenance={}), "provenance.policy_digest is missing"),
]


@pytest.mark.parametrize("spoil, why", BAD, ids=[why for _, why in BAD])
def test_bad_trees_are_named(tmp_path, spoil, why):
    """Not written, and nothing left behind; found in a shard, named with file, index and id."""
    bad = copy.deepcopy(tree("t1"))
    spoil(bad)
    path = shard_path(tmp_path, 0, 1)
    with pytest.raises(RecordError) as caught:
        write_shard(path, [tree(), bad])
    name = f"tree {bad['id']!r}"
    assert str(caught.value) == f"{path}[1]: {name}: {why}"
    assert list(tmp_path.iterdir()) == []

    write_shard(path, [tree(), tree()])  # another program's shard with the same bad tree
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in (tree(), bad):
        writer.write(msgpack.packb(record))
    writer.close()
    _forge_manifest(path)
    source = read_shards(tmp_path)
    assert source[0] == tree()
    with pytest.raises(RecordError) as caught:
        source[1]
    assert str(caught.value) == f"{path}[1]: {name}: {why}"


def _forge_manifest(path):
    manifest_path = path.with_name(path.name + ".manifest.json")
    manifest = json.loads(manifest_path.read_text())
    manifest_path.write_text(json.dumps(manifest | {"bytes": path.stat().st_size}))
