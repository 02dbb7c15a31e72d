"""Explore: after every prefix of the reference path, sample K branches to the end.

    records -> shards of reasoning-tree records under WORKDIR/trees, and trees/summary.json

Verdicts on the branches come later, from `srpo judge`: nothing here knows an arbiter.

A shard is written when all its questions are done, atomically; a run that is started again skips
the shards that are there. All randomness is f(seed, record id, branch point, k), so an interrupted
run ends with the same trees, and so do any number of processes and hosts that run the same command
on the same folder at the same time: each takes the next shard that nobody has. A policy that is
too large for the devices of one process is sampled by all of them on one mesh (workers.py). When
the branches are judged, further parts add more where there is no pair yet (more.py).
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from srpo_jax.config.check import check_exploring
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.prompt import check_disjoint
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_parts import Plan, count_plans, read_plan
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
from srpo_jax.explore.more import Asked, More, begin_part, check_more, shards_of_plan
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
from srpo_jax.keepers import look_again
from srpo_jax.pack.outlines import keep_outlines, outlines_file
from srpo_jax.pack.prompts import Prompts
from srpo_jax.places import check_place


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
    more: bool = False,
) -> pathlib.Path:
    """Run or finish the exploration that `cfg` describes. Returns the folder that was made.

    That is WORKDIR/trees; with explore.reference=self first WORKDIR/roots, whole paths of which a
    judge has to find safe ones before branches can leave them; with missing these are of the
    questions without a reference path alone. judge_roots: has that done at once;
    without it the folder of the roots is returned, and when they are judged (srpo_jax.judge) a
    second call makes the trees. model_dir: the policy, instead of cfg.model.path. params: use these
    instead of that folder's weights (export.sampling_params reads those of a run). on_shard: is
    told of every shard that was written "roots" or "trees", how many questions it has, and the
    seconds since the one before, without those of compiling. refuse_unreadable: UserError when most
    branches do not follow the path format. verify: shards that are there are read in full, and made
    again where they are damaged; else they are known by size and time. more: adds branches to the
    judged trees that have no pair yet, in shards of their own; a part of these that was begun is
    finished in any case.
    Raises UserError for bad records, pictures or settings, and when `workdir` holds shards of
    another run.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py", ["--config.explore.branches=8"])
        trees = srpo_jax.explore(config, "runs/mini")
        srpo_jax.judge(config, "runs/mini")
        srpo_jax.explore(config, "runs/mini", more=True)
        srpo_jax.judge(config, "runs/mini")
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    check_exploring(cfg)
    if more and references_only:
        raise UserError("--references samples no branch, so --more has none to add: leave one out")
    source = records_path(cfg.data.train_records, workdir, field="data.train_records")
    known = read_records(source)
    records = choose_questions(known, cfg.explore.num_questions, seed=cfg.seed)
    for name in ("trees", *(("roots",) if cfg.explore.reference != "dataset" else ())):
        check_folder(workdir / name)
        check_folder(workdir / f"{name}.claims")
    check_place(workdir)
    count = min(cfg.explore.shards, len(records))
    if more:
        check_more(cfg, Shards.of(workdir / "trees", "trees", count, records).paths)
    policy = load_policy(cfg, model_dir=model_dir, params=params, alone=is_alone(cfg, model_dir))
    worker = find_worker(cfg.processes, together=policy.together)
    check_disjoint(policy.asking.encoder.prompt, known, "data.train_records")
    provenance = make_provenance(cfg, policy, records)
    call = Call(on_shard, refuse_unreadable, verify)

    own = cfg.explore.reference != "dataset"
    given = [r for r in records if r.steps] if cfg.explore.reference == "missing" else []
    without = [r for r in records if not r.steps] if given else records
    if own and without:
        roots = Shards.of(workdir / "roots", "roots", min(count, len(without)), without)
        stage = {**provenance, "stage": "roots"}
        _make(cfg, policy, worker, roots, stage, None, call)
        stems = [path.name.removesuffix(SUFFIX) for path in roots.paths]
        judged = functools.partial(_judged, roots.folder, cfg.arbiter.verdicts, stems)
        if judge_roots and not worker.together and judged() is None:
            judge_roots()
        if not worker.says(lambda: judged() is not None):
            worker.tell(
                f"explore: {TRIES} whole paths for each of {len(without)} questions are in "
                f"{roots.folder}; run `srpo judge` and then this command again"
            )
            return roots.folder
        verdicts = find_set(roots.folder, cfg.arbiter.verdicts)
        chosen = _chosen(cfg, policy, roots.folder, verdicts, stems, without, provenance)
        if not chosen and not given:
            raise UserError(
                f"{roots.folder}: none of the whole paths of {len(without)} questions was judged "
                "safe; use explore.reference=dataset"
            )
        references = References(policy, given, chosen)
    else:
        if references_only and not own:
            records = with_steps(records, source)
        references = References(policy, records)
    if references_only:
        provenance["stage"] = "references"

    shards = Shards.of(workdir / "trees", "trees", count, records)
    outliner = Outliner(cfg, policy) if worker.writes else None
    _make(cfg, policy, worker, shards, provenance, references, call, outliner)
    idle = more and not _begun(cfg, worker, shards, outliner)
    for number in range(1, 1 + worker.says(lambda: count_plans(shards.folder))):
        _make(cfg, policy, worker, shards, provenance, references, call, outliner, number)
    if worker.writes and not ((worker.index or idle) and read_summary(shards.folder)):
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
    added to the provenance.
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
    return references


class Call(NamedTuple):
    """What a caller of `explore` asks for; see there."""

    on_shard: ShardTold | None
    refuse_unreadable: bool
    verify: bool


class Shards(NamedTuple):
    """Shards of one folder, and the records of each."""

    folder: pathlib.Path
    paths: list[pathlib.Path]
    records: list[Sequence[Record]]

    @classmethod
    def of(cls, folder: pathlib.Path, stem: str, count: int, records: Sequence[Record]) -> Shards:
        """The records of an exploration, parted into so many shards."""
        edges = [i * len(records) // count for i in range(count + 1)]
        parts = [records[start:end] for start, end in zip(edges, edges[1:])]
        return cls(folder, [shard_path(folder, i, count, stem) for i in range(count)], parts)

    def of_plan(self, plan: Plan) -> Shards:
        """Those of a further part of this exploration."""
        known = {record.id: record for own in self.records for record in own}
        found = shards_of_plan(self.paths, plan)
        records = [[known[name] for name in names] for _, names in found]
        return Shards(self.folder, [path for path, _ in found], list(records))


def _judged(folder: pathlib.Path, name: str, stems: Sequence[str]) -> VerdictSet | None:
    """The verdict set of this name, if every one of these shards has verdicts in it."""
    if not set_names(folder):
        return None
    verdicts = find_set(folder, name)
    return verdicts if all(verdicts.of_shard(stem) is not None for stem in stems) else None


def _begun(cfg: Config, worker: Worker, shards: Shards, outliner: Outliner | None) -> bool:
    """Whether there is a further part to be made: one that was begun, or begins now; else it is
    said why not.
    """

    def begin() -> tuple[int, str]:
        assert outliner is not None  # of the process that writes
        return begin_part(cfg, shards.paths, outliner.asked)

    number, said = worker.says(begin)
    if said:
        worker.tell(said)
    return number > 0


def _make(
    cfg: Config,
    policy: Policy,
    worker: Worker,
    whole: Shards,
    provenance: dict[str, Any],
    references: Mapping[str, Reference] | None,
    call: Call,
    outliner: Outliner | None = None,
    part: int = 0,
) -> None:
    """Makes the shards that are not there yet, with their outlines if there is an outliner.

    whole: of the exploration. part: 0 for these; else the further part that is made. references:
    see Explorer.
    """
    run = {**provenance, "shards": len(whole.paths)}
    shards, more = whole, None
    if part:
        look_again(whole.folder)  # at what another process of this worker has written
        plan = read_plan(whole.folder, part)
        shards, more = whole.of_plan(plan), More(plan, whole.paths)
        provenance = {**provenance, "more": plan.about}
    elif worker.writes:
        refuse_strangers(whole.folder, run)
    paths = shards.paths
    todo = worker.says(
        lambda: [i for i, path in enumerate(paths) if not shard_done(path, verify=call.verify)]
    )
    done = functools.partial(shard_done, verify=call.verify)
    if todo:
        explorer = _explorer(cfg, policy, whole, run, provenance, references, call, more)
        if worker.writes and not part:
            write_json(whole.folder / RUN, run)
        total = sum(len(shards.records[i]) for i in todo)
        worker.tell(_told(cfg, shards, len(todo), provenance, references, more))
        with Progress(total, explorer.engine, quiet=not worker.writes) as progress:
            maker = ShardMaker(
                worker,
                paths,
                shards.records,
                explorer,
                progress,
                call.on_shard,
                outliner,
                done=done,
            )
            maker.make(todo)
    if outliner:
        outliner.complete(paths)


def _explorer(
    cfg: Config,
    policy: Policy,
    whole: Shards,
    run: dict[str, Any],
    provenance: dict[str, Any],
    references: Mapping[str, Reference] | None,
    call: Call,
    more: More | None,
) -> Explorer | ReferencesOnly:
    """What makes the trees. run: of the exploration, as RUN records it."""
    if provenance.get("stage") == "references":
        return ReferencesOnly(policy, provenance, references or {})
    records = [record for own in whole.records for record in own]
    room = kept_room(whole.folder, run)
    if room is None:
        forced = len(policy.forced_start(cfg.explore.prefix))
        room = room_for(policy, records, references, forced)
        keep_room(whole.folder, run, room)
    return Explorer(
        cfg,
        policy,
        provenance,
        room=room,
        most=len(records),
        references=references,
        more=more,
        refuse_unreadable=call.refuse_unreadable,
    )


def _told(
    cfg: Config,
    shards: Shards,
    todo: int,
    provenance: Mapping[str, Any],
    references: Mapping[str, Reference] | None,
    more: More | None,
) -> str:
    """What is made, in one line. todo: how many of the shards."""
    what, each = "questions", f"{TRIES} whole paths each"
    if provenance.get("stage") == "references":
        each = "reference paths alone"
    elif more is not None:
        what = "questions without a pair"
        each = f"up to {more.branches} more branches at each branch point (part {more.plan.number})"
    elif references is not None:
        each = f"{cfg.explore.branches} branches at each branch point"
    count, total = len(shards.paths), sum(map(len, shards.records))
    return f"explore: {total} {what} in {count} shards, {count - todo} of them done before; {each}"


class Outliner:
    """Writes beside a shard of trees what training needs to begin (pack/outlines.py), as it will
    ask the questions. A shard's file is there with it, or made when all shards are.
    """

    def __init__(self, cfg: Config, policy: Policy):
        asking = policy.asking
        if cfg.prompt.train == "bare":
            family = policy.processor.config.family
            asking = load_asking(cfg, asking.folder, family, bare=True)
        self.asked = Asked(Prompts(asking.encoder), asking.outlines)

    def __call__(self, path: pathlib.Path, trees: Sequence[Mapping[str, Any]]) -> None:
        """trees: those of the shard."""
        keep_outlines(path, trees, self.asked.prompts, self.asked.digest)

    def complete(self, paths: Sequence[pathlib.Path]) -> None:
        """For all shards that have none, as of workers that were stopped."""
        for path in paths:
            if not outlines_file(path, self.asked.digest).is_file():
                self(path, list(read_shard(path)))
