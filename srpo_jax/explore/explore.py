"""Explore: after every prefix of the reference path, sample K branches to the end and judge them.

    records -> shards of reasoning-tree records under WORKDIR/trees, and trees/summary.json

A shard is written when all its questions are done, atomically; a run that is started again skips
the shards that are there. All randomness is f(seed, record id, branch point, k), so an interrupted
run ends with the same trees, and so do any number of processes and hosts that run the same command
on the same folder at the same time: each takes the next shard that nobody has (shard_leases.py).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from srpo_jax.arbiter.registry import make_arbiter
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.prompt import check_disjoint
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_store import shard_done, shard_path, write_shard
from srpo_jax.distributed.process_info import detect_process
from srpo_jax.errors import UserError
from srpo_jax.explore.explorer import Explorer
from srpo_jax.explore.progress import Progress
from srpo_jax.explore.provenance import RUN, make_provenance, refuse_strangers
from srpo_jax.explore.self_reference import TRIES
from srpo_jax.explore.shard_leases import ShardLeases, pause
from srpo_jax.explore.summary import read_summary, write_summary
from srpo_jax.files import write_json
from srpo_jax.inference.policy import choose_questions, load_policy


def explore(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    model_dir: str | os.PathLike | None = None,
    arbiter: Arbiter | None = None,
) -> pathlib.Path:
    """Run or finish the exploration that `cfg` describes. Returns the folder of the trees.

    model_dir: the policy, instead of cfg.model.path. arbiter: instead of the one that
    cfg.arbiter.kind names. Raises UserError for bad records, pictures or settings, and when
    `workdir` holds shards of another run.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py", ["--config.explore.branches=8"])
        trees = srpo_jax.explore(config, "runs/mini")
    """
    cfg = as_config(cfg)
    source = records_path(cfg.data.train_records, workdir, field="data.train_records")
    known = read_records(source)
    records = choose_questions(known, cfg.explore.num_questions, seed=cfg.seed)
    arbiter = arbiter or make_arbiter(cfg.arbiter.kind)
    policy = load_policy(cfg, model_dir=model_dir)
    check_disjoint(policy.asking.encoder.prompt, known, "data.train_records")
    provenance = make_provenance(cfg, policy, arbiter, records)

    folder = pathlib.Path(workdir) / "trees"
    count = min(cfg.explore.shards, len(records))
    paths = [shard_path(folder, i, count) for i in range(count)]
    edges = [i * len(records) // count for i in range(count + 1)]
    shards = [records[start:end] for start, end in zip(edges, edges[1:])]
    run = {**provenance, "shards": count}
    refuse_strangers(folder, run)
    todo = [i for i in range(count) if not shard_done(paths[i])]
    process = detect_process(cfg.processes, os.environ)

    if todo:
        rows = min(cfg.explore.batch, max(map(len, shards)))
        explorer = Explorer(cfg, policy, arbiter, records, provenance, rows=rows)
        write_json(folder / RUN, run)
        progress = Progress(sum(len(shards[i]) for i in todo))
        print(
            f"explore: {len(records)} questions in {count} shards, {count - len(todo)} of them "
            f"done before; {cfg.explore.branches} branches at each branch point",
            flush=True,
        )
        first = process.index * len(todo) // process.count  # workers begin apart from each other
        todo = todo[first:] + todo[:first]
        for i in _to_make(paths, todo, folder, lambda i: progress.skip(len(shards[i]))):
            _make_shard(paths[i], shards[i], explorer, progress)

    summary = read_summary(folder) if process.index else None
    summary = summary or write_summary(cfg.arbiter, folder, records, provenance)
    if not summary["questions"]:
        raise UserError(
            f"{folder}: the policy found no safe path for any of {len(records)} questions in "
            f"{TRIES} tries; use explore.reference=dataset"
        )
    return folder


def _make_shard(
    path: pathlib.Path, records: Sequence[Record], explorer: Explorer, progress: Progress
) -> None:
    """Explores the records of one shard, and writes it unless another worker has meanwhile."""
    trees = []
    for start in range(0, len(records), explorer.batch):
        batch = records[start : start + explorer.batch]
        made = explorer(batch)
        progress(len(batch), sum(len(tree["branches"]) for tree in made))
        trees += made
    if not shard_done(path):  # by a worker that took this one for dead
        write_shard(path, trees)


def _to_make(
    paths: Sequence[pathlib.Path],
    todo: Sequence[int],
    folder: pathlib.Path,
    made_elsewhere: Callable[[int], None],
) -> Iterator[int]:
    """Yields the shards that this process is to make, one after the other, each while it holds the
    lease on it. Ends when all shards of `todo` are there, whoever made them: those of a worker that
    died are made here, and `made_elsewhere` is told those that another worker made.
    """
    names = {paths[i].name: i for i in todo}  # keeps the order
    waiting = False
    with ShardLeases(folder.with_name(folder.name + ".claims")) as leases:
        while names:
            name = leases.take(names)
            if name is None and not waiting:
                print(f"explore: {len(names)} shards are being made by others", flush=True)
                waiting = True
            if name is not None:
                i = names.pop(name)
                if shard_done(paths[i]):  # since the first look: another worker was faster
                    made_elsewhere(i)
                else:
                    yield i
                leases.release()
                continue
            pause()
            for name in [n for n, i in names.items() if shard_done(paths[i])]:
                made_elsewhere(names.pop(name))
