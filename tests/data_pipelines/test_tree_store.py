"""Tree shards: whole or not there, checked on the way in and out, damage named."""

from __future__ import annotations

import copy
import hashlib
import json

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from srpo_jax.data_pipelines import tree_store as tree_records
from srpo_jax.data_pipelines.records import Record, RecordError
from srpo_jax.data_pipelines.tree_store import (
    branch_label,
    fingerprint,
    make_tree_record,
    read_shards,
    shard_done,
    shard_path,
    write_shard,
)

PROVENANCE = {
    "policy_digest": "ab",
    "sampler": {"temperature": 1.0},
    "seed": 1,
    "arbiter": "rules",
    "created_by": "srpo_jax 0",
}


def branch(at=0, k=0, **changes) -> dict:
    return {
        "at": at,
        "k": k,
        "tokens": [5, 6],
        "text": "x",
        "finished": True,
        "logp": -1.5,
        "reply_verdict": "SAFE",
        "path_verdict": "SAFE",
        "step_verdicts": ["SAFE"],
        "effective": None,
        "detail": "",
        **changes,
    }


def tree(name="t0", **changes) -> dict:
    return {
        "format": 1,
        "id": name,
        "question": "q",
        "category": None,
        "risky": True,
        "images": [{"name": "a", "sha256": hashlib.sha256(b"z").hexdigest(), "data": b"z"}],
        "steps": [[1, 2], [3]],
        "reply": [4],
        "step_texts": ["a", "b"],
        "reply_text": "c",
        "branches": [branch(), branch(1)],
        "provenance": PROVENANCE,
        **changes,
    }


def shards(folder, *groups):
    for i, group in enumerate(groups):
        write_shard(shard_path(folder, i, len(groups)), group)
    return folder


def test_round_trip_over_shards(tmp_path):
    """Records come back equal, in shard name order; numpy numbers are plain; no leftovers."""
    made = tree(
        "np",
        reply=np.asarray([4, 9], np.int32),
        branches=[branch(np.int64(1), tokens=np.asarray([7]), logp=np.float32(-2))],
    )
    source = read_shards(shards(tmp_path, [tree("a"), tree("b")], [], [made]))
    assert [record["id"] for record in source] == ["a", "b", "np"] and len(source) == 3
    assert source[0] == tree("a")
    assert source[2]["reply"] == [4, 9] and source[2]["branches"][0]["logp"] == -2.0
    assert len(list(tmp_path.iterdir())) == 6


def test_make_tree_record(tmp_path):
    """A record's picture bytes go in as they are, so training needs the tree records alone."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    record = Record(
        id="r", images=("a.png",), question="q", steps=("s",), reply="t", root=str(tmp_path)
    )
    made = make_tree_record(record, [np.asarray([1]), np.asarray([2])], [branch()], PROVENANCE)
    back = read_shards(shards(tmp_path / "trees", [made]))[0]
    assert back["images"][0]["data"] == (tmp_path / "a.png").read_bytes()
    assert back["steps"] == [[1]] and back["reply"] == [2] and back["step_texts"] == ["s"]


BAD = [
    (lambda t: t.update(format=2), "format is 2, this version reads 1"),
    (lambda t: t.pop("risky"), "the tree: field 'risky' is missing"),
    (lambda t: t.update(more=1), "the tree: unknown field 'more'"),
    (lambda t: t.update(id=""), "id is empty"),
    (lambda t: t.update(risky="no"), "risky must be bool, not str"),
    (lambda t: t.update(category="x"), "category 'x' is not one of the nine"),
    (lambda t: t["images"][0].update(data=b"y"), "images[0]: the bytes do not match their sha256"),
    (lambda t: t.update(steps=[], step_texts=[]), "steps is empty: a path needs at least one step"),
    (lambda t: t["steps"].append([]), "steps[2] is empty"),
    (lambda t: t.update(reply=[-1]), "reply holds -1, which is no token id"),
    (lambda t: t["step_texts"].pop(), "1 step_texts for 2 steps"),
    (lambda t: t["branches"][1].update(at=2), "branches[1].at is 2, a path of 2 steps has 0..1"),
    (lambda t: t["branches"][1].update(at=0), "branches[1]: at 0, k 0 is there twice"),
    (lambda t: t["branches"][0].update(tokens=[]), "branches[0].tokens is empty"),
    (
        lambda t: t["branches"][0].update(tokens=[True]),
        "branches[0].tokens holds True, which is no token id",
    ),
    (lambda t: t["branches"][0].update(logp=float("nan")), "branches[0].logp is not finite"),
    (
        lambda t: t["branches"][0].update(reply_verdict="safe"),
        "branches[0]: verdict 'safe' is not one of SAFE, UNSAFE, ERROR",
    ),
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


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "gone"])
def test_damaged_shard_is_named(tmp_path, damage):
    """A shard that lost bytes or a bit is not done, and reading it names the file."""
    noise = np.random.default_rng(0).bytes(4000)  # cannot be compressed: stored as it is
    image = {"name": "a", "sha256": hashlib.sha256(noise).hexdigest(), "data": noise}
    shards(tmp_path, [tree(f"t{i}", images=[image]) for i in range(20)])
    path = shard_path(tmp_path, 0, 1)
    assert shard_done(path)
    data = bytearray(path.read_bytes())
    if damage == "bit":  # of the first record's contents
        data[data.index(noise[2000:2020])] ^= 4
    path.write_bytes(data if damage == "bit" else data[: len(data) // 2 * (damage == "truncated")])
    if damage == "gone":
        path.unlink()
    assert not shard_done(path)
    with pytest.raises(RecordError, match=str(path)):
        read_shards(tmp_path)[0]


def test_shard_without_manifest_is_not_done(tmp_path):
    """Killed between the shard and its manifest: not done, and not read as if it were."""
    shards(tmp_path, [tree("a")], [tree("b")])
    path = shard_path(tmp_path, 1, 2)
    path.with_name(path.name + ".manifest.json").unlink()
    assert not shard_done(path) and shard_done(shard_path(tmp_path, 0, 2))
    with pytest.raises(RecordError, match="no manifest, so it is not finished"):
        read_shards(tmp_path)
    write_shard(path, [tree("b")])
    assert shard_done(path)
    path.with_name(path.name + ".manifest.json").write_text("{}")
    with pytest.raises(RecordError, match="manifest.json: not a manifest"):
        read_shards(tmp_path)
    with pytest.raises(RecordError, match="no tree shards"):
        read_shards(tmp_path / "nothing")


def test_a_second_writer_leaves_a_finished_shard_alone(tmp_path):
    """While it makes the same records, and after, the shard is done and its files are the first
    writer's own; bad records change nothing either.
    """
    path = shard_path(tmp_path, 0, 1)
    first = write_shard(path, [tree("a")])
    files = {p: p.stat().st_ino for p in tmp_path.iterdir()}

    def looking(*records):
        for record in records:
            yield record
            assert shard_done(path)

    assert write_shard(path, looking(tree("a"))) == first
    with pytest.raises(RecordError):
        write_shard(path, looking(tree("a"), {}))
    assert {p: p.stat().st_ino for p in tmp_path.iterdir()} == files and shard_done(path)


def test_a_manifest_never_describes_another_file(tmp_path, monkeypatch):
    """Other records over a finished shard, killed between the two files: not done, rather than a
    manifest that is another file's. The same records over a damaged shard make it whole.
    """
    path = shard_path(tmp_path, 0, 1)
    write_shard(path, [tree("a")])
    path.write_bytes(b"damaged")
    write_shard(path, [tree("a")])
    assert shard_done(path)

    def killed_after(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    replace = tree_records.os.replace
    monkeypatch.setattr(tree_records.os, "replace", killed_after)
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, [tree("b")])
    with pytest.raises(RecordError, match="no manifest"):
        read_shards(tmp_path)
    monkeypatch.undo()
    write_shard(path, [tree("b")])
    assert shard_done(path) and read_shards(tmp_path)[0]["id"] == "b"


def test_fingerprint_is_of_the_contents(tmp_path):
    """The same records give the same fingerprint, another token gives another one."""

    def of(name, record):
        return fingerprint(shards(tmp_path / name, [tree("a")], [record]))

    assert of("1", tree("b")) == of("2", tree("b")) != of("3", tree("b", reply=[5]))


@pytest.mark.parametrize(
    "reply, path, effective, scope, require, label",
    [
        ("SAFE", "UNSAFE", None, "reply", False, True),
        ("SAFE", "UNSAFE", None, "path", False, False),
        ("UNSAFE", "SAFE", None, "path", False, False),
        ("ERROR", "SAFE", True, "reply", False, None),
        ("SAFE", "ERROR", True, "reply", False, True),
        ("SAFE", "ERROR", True, "path", False, None),
        ("UNSAFE", "ERROR", True, "path", False, None),
        ("SAFE", "SAFE", False, "path", True, False),
        ("SAFE", "SAFE", None, "reply", True, True),
        ("SAFE", "SAFE", False, "reply", False, True),
    ],
)
def test_branch_label(reply, path, effective, scope, require, label):
    """ERROR is never read as safe; effectiveness counts only where asked for and judged."""
    judged = branch(reply_verdict=reply, path_verdict=path, effective=effective)
    assert branch_label(judged, scope=scope, require_effective=require) is label
