"""Tree shards: whole or not there, checked on the way in and out, damage named."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

import srpo_jax.files
from srpo_jax.data_pipelines import tree_store
from srpo_jax.data_pipelines.json_parts import manifest_path
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_store import (
    fingerprint,
    read_shard,
    read_shards,
    shard_done,
    shard_path,
    shards_of,
    verify_shards,
    write_shard,
)
from srpo_jax.errors import RunFailure
from tests.support import judged
from tests.support.full_disk import full_disk


def branch(at=0, k=0, **changes) -> dict:
    return judged.branch(at, k, None, **changes)


def tree(name="t0", **changes) -> dict:
    return judged.plain(judged.tree(name, **changes))


def shards(folder, *groups):
    return judged.write_trees(folder, *groups)


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
    with pytest.raises(RecordError, match=str(path)) as caught:
        read_shards(tmp_path)[0]
    if damage in ("truncated", "empty"):
        assert f" {path.stat().st_size} bytes, its manifest says {len(data)}" in str(caught.value)


@pytest.mark.parametrize("count", [1, 3])
def test_a_shard_with_another_number_of_records_is_named(tmp_path, count):
    """A manifest that counts one record more or less than there are: none is left out."""
    shards(tmp_path, [tree("a"), tree("b")])
    path = shard_path(tmp_path, 0, 1)
    manifest = path.with_name(path.name + ".manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "count": count}))
    with pytest.raises(RecordError, match=f"{path}.*2 records, its manifest says {count}"):
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


@pytest.mark.parametrize("count", [-5, 0, 1, 3, 2**63, 2**63 - 1, 10**40, 2.0, True, None])
@pytest.mark.parametrize("size", [None, 2**70])
def test_a_manifest_with_another_count_is_one_line(tmp_path, count, size):
    """Whatever number of records it says, none is left out and nothing is sized by it. size: of the
    shard, if that is another one as well."""
    folder = shards(tmp_path, [tree("a"), tree("b")], [tree("c")])
    path = manifest_path(shard_path(folder, 0, 2))
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "count": count, "bytes": size or manifest["bytes"]}))
    with pytest.raises(RecordError) as caught:
        list(read_shards(folder))
    assert str(shard_path(folder, 0, 2)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b" " * 5000, b"\xff", None])
def test_a_manifest_that_is_none_is_one_line(tmp_path, content):
    """Nested without end, of thousands of bytes, no text, or a pipe that nobody writes to."""
    folder = shards(tmp_path, [tree("a")])
    path = manifest_path(shard_path(folder, 0, 1))
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(RecordError, match="not a manifest: ") as caught:
        read_shards(folder)
    assert "\n" not in str(caught.value)
    assert shards_of(folder) == [] and not shard_done(shard_path(folder, 0, 1))


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

    replace = tree_store.os.replace
    monkeypatch.setattr(tree_store.os, "replace", killed_after)
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, [tree("b")])
    with pytest.raises(RecordError, match="no manifest"):
        read_shards(tmp_path)
    monkeypatch.undo()
    write_shard(path, [tree("b")])
    assert shard_done(path) and read_shards(tmp_path)[0]["id"] == "b"


def test_a_full_disk_is_told_by_the_shards_name(tmp_path, monkeypatch):
    """The writer's own error becomes one line, and the folder is as it was; an error on the way,
    of a record or of whoever makes them, is told rather than that of closing the file."""
    path = shard_path(tmp_path, 0, 1)
    write_shard(path, [tree("a")])
    files = {p: p.stat().st_ino for p in tmp_path.iterdir()}
    full_disk(monkeypatch, srpo_jax.files)
    with pytest.raises(RunFailure) as caught:
        write_shard(path, [tree("b")])
    said = f"{path} cannot be written: write() failed: No space left on device"
    assert str(caught.value) == said

    def broken():
        yield tree("b")
        raise RuntimeError("the sampler's own")

    with pytest.raises(RecordError, match="format is None"):
        write_shard(path, [tree("b"), {}])
    with pytest.raises(RuntimeError, match="the sampler's own"):
        write_shard(path, broken())
    assert {p: p.stat().st_ino for p in tmp_path.iterdir()} == files and shard_done(path)


def test_fingerprint_is_of_the_contents(tmp_path):
    """The same records give the same fingerprint, another token gives another one."""

    def of(name, record):
        return fingerprint(shards(tmp_path / name, [tree("a")], [record]))

    assert of("1", tree("b")) == of("2", tree("b")) != of("3", tree("b", reply=[5]))


def test_what_is_done_can_be_read_while_the_rest_is_made(tmp_path):
    """The shards with a manifest, alone and in name order; a folder without any is no error."""
    assert shards_of(tmp_path / "trees") == []
    shards(tmp_path, [tree("a")], [tree("b"), tree("c")])
    paths = [shard_path(tmp_path, i, 2) for i in range(2)]
    assert shards_of(tmp_path) == paths
    assert [found["id"] for found in read_shard(paths[1])] == ["b", "c"]
    paths[0].with_name(paths[0].name + ".manifest.json").unlink()
    assert shards_of(tmp_path) == paths[1:]
    assert [found["id"] for found in read_shard(paths[1])] == ["b", "c"]


def test_a_finished_shard_is_known_by_size_and_time(tmp_path, monkeypatch):
    """One that nobody wrote to since its manifest is not read; one that was written to later, and
    with verify every one, is read in full."""
    shards(tmp_path, [tree("a")])
    path = shard_path(tmp_path, 0, 1)
    read, file_sha256 = [], tree_store.file_sha256
    monkeypatch.setattr(tree_store, "file_sha256", lambda p: read.append(p) or file_sha256(p))
    assert shard_done(path) and not read
    assert shard_done(path, verify=True) and len(read) == 1
    written = manifest_path(path).stat().st_mtime_ns
    os.utime(path, ns=(written + 1, written + 1))
    assert shard_done(path) and len(read) == 2  # a copy, say, whose times are in no order
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert not shard_done(path)
    os.utime(path, ns=(written - 1, written - 1))  # what no clock shows
    assert shard_done(path) and not shard_done(path, verify=True)
    path.write_bytes(damaged[:-1])
    os.utime(path, ns=(written - 1, written - 1))
    assert not shard_done(path)


def test_verifying_names_the_damaged_shard(tmp_path):
    """Each process reads its part of the shards; together they read all."""
    source = read_shards(shards(tmp_path, [tree("a")], [tree("b")], [tree("c")]))
    verify_shards(source)
    path, _ = source.shards[1]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    verify_shards(source, 0, 2)
    for process in ({}, {"index": 1, "count": 2}):
        with pytest.raises(RecordError, match="00001-of-00003.*: damaged shard: .*--verify"):
            verify_shards(source, **process)
