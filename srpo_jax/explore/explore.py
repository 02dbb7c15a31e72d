"""Explore: after every prefix of the reference path, sample K branches to the end.

    records -> shards of reasoning-tree records under WORKDIR/trees, and trees/summary.json

Verdicts on the branches come later, from `srpo judge`: nothing here knows an arbiter.

A shard is written when all its questions are done, atomically; a run that is started again skips
the shards that are there. All randomness is f(seed, record id, branch point, k), so an interrupted
run ends with the same trees, and so do any number of processes and hosts that run the same command
on the same folder at the same time: each takes the next shard that nobody has (shard_leases.py).
"""

from __future__ import annotations

import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.prompt import check_disjoint
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_store import (
    SUFFIX,
    read_shard,
    read_shards,
    shard_done,
    shard_path,
    write_shard,
)
from srpo_jax.data_pipelines.verdict_store import VerdictSet, branch_label, find_set, set_names
from srpo_jax.distributed.process_info import detect_process
from srpo_jax.errors import UserError
from srpo_jax.explore.explorer import Explorer, ReferencesOnly, with_steps
from srpo_jax.explore.progress import Progress
from srpo_jax.explore.provenance import RUN, make_provenance, refuse_strangers
from srpo_jax.explore.room import Reference, References, keep_room, kept_room, room_for
from srpo_jax.explore.self_reference import TRIES, own_references
from srpo_jax.explore.shard_leases import ShardLeases, pause
from srpo_jax.explore.summary import read_summary, write_summary
from srpo_jax.files import check_folder, write_json
from srpo_jax.inference.policy import Policy, choose_questions, load_policy
from srpo_jax.inference.prompting import load_asking
from srpo_jax.pack.outlines import keep_outlines, outlines_file
from srpo_jax.pack.prompts import Prompts

BatchTold = Callable[[str, int, float], None]  # (roots or trees, questions, seconds)


def explore(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
    judge_roots: Callable[[], object] | None = None,
    references_only: bool = False,
    on_batch: BatchTold | None = None,
    refuse_unreadable: bool = True,
    verify: bool = False,
) -> pathlib.Path:
    """Run or finish the exploration that `cfg` describes. Returns the folder that was made.

    That is WORKDIR/trees; with explore.reference=self first WORKDIR/roots, whole paths of which a
    judge has to find safe ones before branches can leave them. judge_roots: has that done at once;
    without it the folder of the roots is returned, and when they are judged (srpo_jax.judge) a
    second call makes the trees. model_dir: the policy, instead of cfg.model.path. params: use these
    instead of that folder's weights (export.sampling_params reads those of a run). on_batch: is
    told of every batch of questions how many they were and how many seconds they took; the first
    one of a call compiles. refuse_unreadable: UserError when most branches do not follow the path
    format. verify: shards that are there are read in full, and made again where they are damaged;
    else they are known by size and time.
    Raises UserError for bad records, pictures or settings, and when `workdir` holds shards of
    another run.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py", ["--config.explore.branches=8"])
        trees = srpo_jax.explore(config, "runs/mini")
        srpo_jax.judge(config, "runs/mini")
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    source = records_path(cfg.data.train_records, workdir, field="data.train_records")
    known = read_records(source)
    records = choose_questions(known, cfg.explore.num_questions, seed=cfg.seed)
    for name in ("trees", *(("roots",) if cfg.explore.reference == "self" else ())):
        check_folder(workdir / name)
        check_folder(workdir / f"{name}.claims")
    policy = load_policy(cfg, model_dir=model_dir, params=params)
    check_disjoint(policy.asking.encoder.prompt, known, "data.train_records")
    provenance = make_provenance(cfg, policy, records)
    count = min(cfg.explore.shards, len(records))
    call = Call(on_batch, refuse_unreadable, verify)

    if references_only:
        records = with_steps(records, source)
        provenance["stage"] = "references"
        references = References(policy, records)
    elif cfg.explore.reference == "self":
        roots = Shards(workdir / "roots", "roots", count, records)
        _make(cfg, policy, roots, {**provenance, "stage": "roots"}, None, call)
        stems = [path.name.removesuffix(SUFFIX) for path in roots.paths]
        verdicts = _judged(roots.folder, cfg.arbiter.verdicts, stems)
        if verdicts is None and judge_roots:
            judge_roots()
            verdicts = _judged(roots.folder, cfg.arbiter.verdicts, stems)
        if verdicts is None:
            print(
                f"explore: {TRIES} whole paths for each of {len(records)} questions are in "
                f"{roots.folder}; run `srpo judge` and then this command again",
                flush=True,
            )
            return roots.folder
        references = _chosen(cfg, policy, roots.folder, verdicts, stems, records, provenance)
    else:
        references = References(policy, records)

    shards = Shards(workdir / "trees", "trees", count, records)
    _make(cfg, policy, shards, provenance, references, call, Outliner(cfg, policy))
    process = detect_process(cfg.processes, os.environ)
    if not (process.index and read_summary(shards.folder)):
        write_summary(shards.folder, records, provenance)
    return shards.folder


def _chosen(
    cfg: Config,
    policy: Policy,
    roots: pathlib.Path,
    verdicts: VerdictSet,
    stems: Sequence[str],
    records: Sequence[Record],
    provenance: dict[str, Any],
) -> dict[str, tuple[Record, list[np.ndarray]]]:
    """The reference paths chosen from the judged roots, see own_references; what chose them is
    added to the provenance. Raises UserError when none is safe.
    """
    references = own_references(
        read_shards(roots),
        records,
        verdicts,
        policy.processor,
        policy.format,
        cfg.arbiter,
        opened=policy.opened,
    )
    provenance["references"] = {
        "judge": verdicts.judge["digest"],
        "verdicts": verdicts.fingerprint(stems)[:16],
        **arguments(branch_label, cfg.arbiter),
    }
    if not references:
        raise UserError(
            f"{roots}: none of the whole paths of {len(records)} questions was judged safe; use "
            "explore.reference=dataset"
        )
    return references


class Call(NamedTuple):
    """What a caller of `explore` asks for; see there."""

    on_batch: BatchTold | None
    refuse_unreadable: bool
    verify: bool


class Shards:
    """The records of an exploration, parted into the shards of one folder."""

    def __init__(self, folder: pathlib.Path, stem: str, count: int, records: Sequence[Record]):
        self.folder = folder
        self.paths = [shard_path(folder, i, count, stem) for i in range(count)]
        edges = [i * len(records) // count for i in range(count + 1)]
        self.records = [records[start:end] for start, end in zip(edges, edges[1:])]


def _judged(folder: pathlib.Path, name: str, stems: Sequence[str]) -> VerdictSet | None:
    """The verdict set of this name, if every one of these shards has verdicts in it."""
    if not set_names(folder):
        return None
    verdicts = find_set(folder, name)
    return verdicts if all(verdicts.of_shard(stem) is not None for stem in stems) else None


def _make(
    cfg: Config,
    policy: Policy,
    shards: Shards,
    provenance: dict[str, Any],
    references: Mapping[str, Reference] | None,
    call: Call,
    outliner: Outliner | None = None,
) -> None:
    """Makes the shards of a folder that are not there yet, with their outlines if there is an
    outliner. references: see Explorer.
    """
    paths, count = shards.paths, len(shards.paths)
    run = {**provenance, "shards": count}
    refuse_strangers(shards.folder, run)
    todo = [i for i in range(count) if not shard_done(paths[i], verify=call.verify)]
    if not todo:
        if outliner:
            outliner.complete(paths)
        return
    done = functools.partial(shard_done, verify=call.verify)
    process = detect_process(cfg.processes, os.environ)
    records = [record for part in shards.records for record in part]
    rows = min(cfg.explore.batch, max(map(len, shards.records)))
    explorer: Explorer | ReferencesOnly
    if provenance.get("stage") == "references":
        explorer = ReferencesOnly(policy, provenance, references or {})
    else:
        room = kept_room(shards.folder, run)
        if room is None:
            forced = len(policy.forced_start(cfg.explore.prefix))
            room = room_for(policy, records, references, forced)
            keep_room(shards.folder, run, room)
        explorer = Explorer(
            cfg,
            policy,
            provenance,
            rows=rows,
            room=room,
            references=references,
            refuse_unreadable=call.refuse_unreadable,
        )
    write_json(shards.folder / RUN, run)
    progress = Progress(sum(len(shards.records[i]) for i in todo))
    each = f"{TRIES} whole paths each"
    if provenance.get("stage") == "references":
        each = "reference paths alone"
    elif references is not None:
        each = f"{cfg.explore.branches} branches at each branch point"
    print(
        f"explore: {len(records)} questions in {count} shards, {count - len(todo)} of them done "
        f"before; {each}",
        flush=True,
    )
    first = process.index * len(todo) // process.count  # workers begin apart from each other
    todo = todo[first:] + todo[:first]
    with progress:
        for i in _to_make(
            paths, todo, shards.folder, done, lambda i: progress.skip(len(shards.records[i]))
        ):
            trees = _make_shard(paths[i], shards.records[i], explorer, progress, call.on_batch)
            if not done(paths[i]):  # by a worker that took this one for dead
                write_shard(paths[i], trees)
            if outliner:
                outliner(paths[i], trees)
    if outliner:
        outliner.complete(paths)


def _make_shard(
    path: pathlib.Path,
    records: Sequence[Record],
    explorer: Explorer | ReferencesOnly,
    progress: Progress,
    on_batch: BatchTold | None,
) -> list[dict[str, Any]]:
    """The trees of one shard. path: where they will lie, whose folder is told to on_batch."""
    trees = []
    for start in range(0, len(records), explorer.batch):
        batch = records[start : start + explorer.batch]
        begin = time.monotonic()
        made = explorer(batch)
        if on_batch is not None:
            on_batch(path.parent.name, len(batch), time.monotonic() - begin)
        progress(len(batch), sum(len(tree["branches"]) for tree in made))
        trees += made
    return trees


class Outliner:
    """Writes beside a shard of trees what training needs to begin (pack/outlines.py), as it will
    ask the questions. A shard's file is there with it, or made when all shards are.
    """

    def __init__(self, cfg: Config, policy: Policy):
        asking = policy.asking
        if cfg.prompt.train == "bare":
            family = policy.processor.config.family
            asking = load_asking(cfg, asking.folder, family, bare=True)
        self._prompts, self._digest = Prompts(asking.encoder), asking.outlines

    def __call__(self, path: pathlib.Path, trees: Sequence[Mapping[str, Any]]) -> None:
        """trees: those of the shard."""
        keep_outlines(path, trees, self._prompts, self._digest)

    def complete(self, paths: Sequence[pathlib.Path]) -> None:
        """For all shards that have none, as of workers that were stopped."""
        for path in paths:
            if not outlines_file(path, self._digest).is_file():
                self(path, list(read_shard(path)))


def _to_make(
    paths: Sequence[pathlib.Path],
    todo: Sequence[int],
    folder: pathlib.Path,
    done: Callable[[pathlib.Path], bool],
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
                if done(paths[i]):  # since the first look: another worker was faster
                    made_elsewhere(i)
                else:
                    yield i
                leases.release()
                continue
            pause()
            for name in [n for n, i in names.items() if done(paths[i])]:
                made_elsewhere(names.pop(name))
