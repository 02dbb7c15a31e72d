"""srpo_jax/explore/shard_maker.py: shards that are begun before the one before is whole."""

from __future__ import annotations

import threading
import time

import pytest

from srpo_jax.data_pipelines.tree_store import shard_path
from srpo_jax.explore import shard_maker
from srpo_jax.explore.progress import Progress
from srpo_jax.explore.shard_maker import ShardMaker
from srpo_jax.explore.workers import Worker
from srpo_jax.inference.engine.ahead import Ahead
from tests.support import judged

SIZES = (1, 2, 1, 3, 2, 1, 1, 2, 1, 2)


class ReadsAhead:
    """Makes trees of names as an engine with four rows would: questions are read beforehand, and
    the last of four is done first. meet: called before the first one is done."""

    def __init__(self, meet=lambda: None):
        self.meet = meet

    def stream(self, keyed):
        rows, begun = [], False
        with Ahead(keyed, depth=2) as source:
            for item in source:
                rows.append(item)
                if len(rows) == 4:
                    if not begun:
                        self.meet()
                    begun = True
                    yield self.tree(*rows.pop())
        for item in reversed(rows):
            yield self.tree(*item)

    def tree(self, key, name):
        time.sleep(0.002)
        return key, judged.plain(judged.tree(name))


@pytest.fixture
def make(monkeypatch):
    """(folder, explorer, on_shard) -> None: makes all shards of the folder."""
    monkeypatch.setattr(shard_maker, "pause", lambda: time.sleep(0.01))
    names = [[f"s{i}q{j}" for j in range(size)] for i, size in enumerate(SIZES)]

    def run(folder, explorer, on_shard=None, first=0):
        folder.mkdir(exist_ok=True)
        paths = [shard_path(folder, i, len(SIZES)) for i in range(len(SIZES))]
        todo = [*range(first, len(SIZES)), *range(first)]
        with Progress(sum(SIZES), None) as progress:
            ShardMaker(Worker(), paths, names, explorer, progress, on_shard).make(todo)

    return run


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_workers_with_several_leases_each_make_every_shard_once(make, tmp_path):
    """None is lost and none is made twice, though a worker has more than one at a time; the files
    are those of one worker, and no lease is left."""
    make(tmp_path / "alone", ReadsAhead())
    told, failed, held = [], [], []
    claims = tmp_path / "trees.claims"
    both = threading.Barrier(2, timeout=60)

    def meet():
        both.wait()
        held.append(len(list(claims.glob("*.claim"))))
        both.wait()

    def work(first):
        try:
            make(tmp_path / "trees", ReadsAhead(meet), lambda *shard: told.append(shard), first)
        except BaseException as error:
            failed.append(error)
            both.abort()

    workers = [threading.Thread(target=work, args=(first,)) for first in (0, len(SIZES) // 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not failed and min(held) > 3
    assert sorted((questions, stage) for stage, questions, _ in told) == sorted(
        (size, "trees") for size in SIZES
    )
    assert bytes_of(tmp_path / "trees") == bytes_of(tmp_path / "alone")
    assert not claims.exists()


def test_who_fails_gives_back_all_its_leases(make, tmp_path, monkeypatch):
    """A disk that is full ends the worker; no shard that it had begun, or would have begun next,
    keeps others waiting, and the same call afterwards makes what is missing."""
    real, written = shard_maker.write_shard, []

    def full(path, trees):
        if len(written) == 2:
            raise OSError("no space")
        written.append(path)
        real(path, trees)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space") as kept:
        patched.setattr(shard_maker, "write_shard", full)
        make(tmp_path / "trees", ReadsAhead())
    assert not (tmp_path / "trees.claims").exists()
    assert not any(thread.name == "ahead" for thread in threading.enumerate())
    make(tmp_path / "trees", ReadsAhead())
    make(tmp_path / "alone", ReadsAhead())
    assert bytes_of(tmp_path / "trees") == bytes_of(tmp_path / "alone")
    assert kept.value.args == ("no space",)
