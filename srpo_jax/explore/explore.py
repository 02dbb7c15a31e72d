"""Explore: after every prefix of the reference path, sample K branches to the end.

    records -> shards of reasoning-tree records under WORKDIR/trees, and trees/summary.json

Verdicts on the branches come later, from `srpo judge`: nothing here knows an arbiter.

A shard is written when all its questions are done, atomically; a run that is started again skips
the shards that are there. All randomness is f(seed, record id, branch point, k), so an interrupted
run ends with the same trees, and so do any number of processes and hosts that run the same command
on the same folder at the same time: each takes the next shard that nobody has. A policy that is
too large for the devices of one process is sampled by all of them on one mesh (workers.py).
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
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
)
from srpo_jax.data_pipelines.verdict_store import VerdictSet, branch_label, find_set, set_names
from srpo_jax.errors import UserError
from srpo_jax.explore.explorer import Explorer, ReferencesOnly, with_steps
from srpo_jax.explore.progress import Progress
from srpo_jax.explore.provenance import RUN, make_provenance, refuse_strangers
from srpo_jax.explore.room import Reference, References, keep_room, kept_room, room_for
from srpo_jax.explore.self_reference import TRIES, own_references
from srpo_jax.explore.shard_maker import ShardMaker, ShardTold
from srpo_jax.explore.summary import read_summary, write_summary
from srpo_jax.explore.workers import Worker, find_worker, is_alone
from srpo_jax.files import check_folder, write_json
from srpo_jax.inference.policy import Policy, choose_questions, load_policy
from srpo_jax.inference.prompting import load_asking
from srpo_jax.pack.outlines import keep_outlines, outlines_file
from srpo_jax.pack.prompts import Prompts


def explore(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
    judge_roots: Callable[[], object] | None = None,
    references_only: bool = False,
    on_shard: ShardTold | None = None,
    refuse_unreadable: bool = True,
    verify: bool = False,
) -> pathlib.Path:
    """Run or finish the exploration that `cfg` describes. Returns the folder that was made.

    That is WORKDIR/trees; with explore.reference=self first WORKDIR/roots, whole paths of which a
    judge has to find safe ones before branches can leave them. judge_roots: has that done at once;
    without it the folder of the roots is returned, and when they are judged (srpo_jax.judge) a
    second call makes the trees. model_dir: the policy, instead of cfg.model.path. params: use these
    instead of that folder's weights (export.sampling_params reads those of a run). on_shard: is
    told of every shard that was written "roots" or "trees", how many questions it has, and the
    seconds since the one before, without those of compiling. refuse_unreadable: UserError when most
    branches do not follow the path format. verify: shards that are there are read in full, and made
    again where they are damaged; else they are known by size and time.
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
    policy = load_policy(cfg, model_dir=model_dir, params=params, alone=is_alone(cfg, model_dir))
    worker = find_worker(cfg.processes, together=policy.together)
    check_disjoint(policy.asking.encoder.prompt, known, "data.train_records")
    provenance = make_provenance(cfg, policy, records)
    count = min(cfg.explore.shards, len(records))
    call = Call(on_shard, refuse_unreadable, verify)

    if references_only:
        records = with_steps(records, source)
        provenance["stage"] = "references"
        references = References(policy, records)
    elif cfg.explore.reference == "self":
        roots = Shards(workdir / "roots", "roots", count, records)
        stage = {**provenance, "stage": "roots"}
        _make(cfg, policy, worker, roots, stage, None, call)
        stems = [path.name.removesuffix(SUFFIX) for path in roots.paths]
        judged = functools.partial(_judged, roots.folder, cfg.arbiter.verdicts, stems)
        if judge_roots and not worker.together and judged() is None:
            judge_roots()
        if not worker.says(lambda: judged() is not None):
            worker.tell(
                f"explore: {TRIES} whole paths for each of {len(records)} questions are in "
                f"{roots.folder}; run `srpo judge` and then this command again"
            )
            return roots.folder
        verdicts = find_set(roots.folder, cfg.arbiter.verdicts)
        references = _chosen(cfg, policy, roots.folder, verdicts, stems, records, provenance)
    else:
        references = References(policy, records)

    shards = Shards(workdir / "trees", "trees", count, records)
    outliner = Outliner(cfg, policy) if worker.writes else None
    _make(cfg, policy, worker, shards, provenance, references, call, outliner)
    if worker.writes and not (worker.index and read_summary(shards.folder)):
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

    on_shard: ShardTold | None
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
    worker: Worker,
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
    if worker.writes:
        refuse_strangers(shards.folder, run)
    todo = worker.says(
        lambda: [i for i in range(count) if not shard_done(paths[i], verify=call.verify)]
    )
    if not todo:
        if outliner:
            outliner.complete(paths)
        return
    records = [record for part in shards.records for record in part]
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
            room=room,
            most=len(records),
            references=references,
            refuse_unreadable=call.refuse_unreadable,
        )
    if worker.writes:
        write_json(shards.folder / RUN, run)
    total = sum(len(shards.records[i]) for i in todo)
    progress = Progress(total, explorer.engine, quiet=not worker.writes)
    each = f"{TRIES} whole paths each"
    if provenance.get("stage") == "references":
        each = "reference paths alone"
    elif references is not None:
        each = f"{cfg.explore.branches} branches at each branch point"
    worker.tell(
        f"explore: {len(records)} questions in {count} shards, {count - len(todo)} of them done "
        f"before; {each}"
    )
    with progress:
        ShardMaker(worker, paths, shards.records, explorer, progress, call.on_shard, outliner).make(
            todo
        )
    if outliner:
        outliner.complete(paths)


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
