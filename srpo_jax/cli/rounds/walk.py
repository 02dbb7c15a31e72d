"""Walks the rounds: which stages are due, by what lies on disk, and their order.

    WORKDIR/rounds.json  WORKDIR/round-1/{trees,verdicts,checkpoints,export,eval}  WORKDIR/round-2/

Every round is an ordinary workdir. Its policy is the export of the round before, its branches are
its own, and it trains on them alone. The same command again goes on where it stopped.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.buckets.objects import is_url
from srpo_jax.cli.rounds.progress import Progress, what_decides
from srpo_jax.cli.rounds.stages import STAGES, Round, Stage, Waits
from srpo_jax.config.check import check_exploring
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.distributed import compile_cache
from srpo_jax.distributed.lifecycle import distributed_session, this_process
from srpo_jax.errors import UserError
from srpo_jax.files import check_writable
from srpo_jax.judge.stage import check_arbiter, default_name
from srpo_jax.keepers import place_of
from srpo_jax.models.registry import load_model_config
from srpo_jax.owners import Owner
from srpo_jax.runs.methods_table.collect import collect
from srpo_jax.runs.methods_table.formats import render
from srpo_jax.runs.workdir import round_folders

SPLITS = ("train", "test", "validation", "benign")  # of data.*_records
OWNER = "run.owner"


def run_rounds(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    rounds: int = 1,
    allow_upload: bool = False,
    stages: Sequence[Stage] = STAGES,
    tell: Callable[[str], None] = say,
) -> bool:
    """Runs or finishes so many rounds in WORKDIR/round-1 and so on. Returns whether they are done;
    not if a config without an arbiter waits for verdicts from elsewhere, and it is said which.

    allow_upload: of srpo judge. stages: instead of a round's own. tell: gets the heading of every
    stage before it begins.
    Errors: UserError for settings that a stage would refuse and that can be known beforehand, for a
    workdir of another run, for fewer rounds than have begun; and as of the stages.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py")
        run_rounds(config, "runs/rounds", rounds=2)
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    if rounds < 1:
        raise UserError(f"--rounds={rounds}: at least 1 is needed")
    plan = _plan(cfg, workdir, stages, allow_upload)
    Progress(workdir, plan.decides).check_rounds(rounds)
    check_writable(workdir)
    compile_cache.use(cfg.train.compilation_cache)
    again = "wait for it or stop it, or give another --workdir"
    with (
        distributed_session(cfg.processes, cfg),
        Owner(workdir / OWNER, str(workdir), "walked", again) as owner,
    ):
        _check_alone(jax.process_count())
        progress = Progress(workdir, plan.decides)  # as it is now that nobody else writes it
        for number in range(1, rounds + 1):
            each = Round.of(plan.cfg, workdir, number, plan.verdicts, allow_upload)
            try:
                _walk(each, f"round {number} of {rounds}", plan.stages, progress, owner, tell)
            except Waits as waits:
                tell(str(waits))
                return False
    return True


class _Plan(NamedTuple):
    """cfg: with the files of its records. stages: those that there are. verdicts: see Round.
    decides: what decides the rounds.
    """

    cfg: Config
    stages: Sequence[Stage]
    verdicts: str
    decides: dict[str, Any]


def _plan(cfg: Config, workdir: pathlib.Path, stages: Sequence[Stage], allow_upload: bool) -> _Plan:
    """What is walked. Errors: UserError for what can be known to go wrong later."""
    check_exploring(cfg)
    if cfg.data.trees:
        raise UserError("every round explores its own trees: leave data.trees empty")
    _check_alone(this_process(cfg.processes).count)
    load_model_config(local_folder(cfg.model.path), cfg.model.family)
    cfg = with_records(cfg, workdir)

    def read(spec: str) -> list[Record]:
        return read_records(records_path(spec, workdir, field="data"))

    records = {"train records": read(cfg.data.train_records)}
    asked = cfg.data.records(cfg.eval.split)
    if asked:
        records[f"{cfg.eval.split} records"] = read(asked)
    else:
        stages = [stage for stage in stages if stage.name != "eval"]
    verdicts, judge = cfg.arbiter.verdicts, ""
    if cfg.arbiter.kind:
        pictures = sum(len(record.images) for own in records.values() for record in own)
        about = check_arbiter(cfg, pictures, allow_upload=allow_upload)
        verdicts = verdicts or default_name(about)
        judge = f"{about['arbiter']} {about['digest']}"
    return _Plan(cfg, stages, verdicts, what_decides(cfg, records, judge))


def _check_alone(processes: int) -> None:
    if processes > 1:
        raise UserError("srpo run is one process; with several walk the verbs round by round")


def _walk(
    each: Round,
    name: str,
    stages: Sequence[Stage],
    progress: Progress,
    owner: Owner,
    tell: Callable[[str], None],
) -> None:
    due = due_stages(each, stages, progress)
    for stage in stages:
        if stage.name not in due:
            continue
        tell(f"{name}: {stage.name}")
        stage.do(each)
        left = stage.left(each)
        assert left is not None, f"{stage.name} left nothing in {each.folder}"
        owner.check()
        about = {"seed": each.seed, "policy": each.policy}
        progress.ended(each.number, about, stage.name, left)
    if not due:
        tell(f"{name}: done before")


def due_stages(each: Round, stages: Sequence[Stage], progress: Progress) -> set[str]:
    """The names of the stages that a round needs. As with make: what is kept for good has to be as
    it was left; what only served the next stage, if that stage is due.
    """
    due: set[str] = set()
    next_is_due = True  # after the last stage comes what this is all for
    for stage in reversed(stages):
        wanted = stage.kept or next_is_due
        left = progress.left(each.number, stage.name) if wanted else None
        next_is_due = wanted and (left is None or left != stage.left(each))
        if next_is_due:
            due.add(stage.name)
    return due


def show(workdir: pathlib.Path) -> str:
    """The table of the rounds that are done, if their answers were judged, and what can be read."""
    folders = round_folders(workdir)
    lines = []
    if any(any(folder.glob("eval/*/scores.json")) for folder in folders):
        lines.append(render(collect([workdir]), "terminal"))
    lines += [f"export of {folder.name}: {folder / 'export'}" for folder in folders]
    return "\n".join([*lines, f"`srpo report {folders[-1]}` writes a page of the last round"])


def with_records(cfg: Config, workdir: pathlib.Path) -> Config:
    """The config with the files of its records; the embedded world is drawn once, into
    WORKDIR/data.
    """
    found = {}
    for split in SPLITS:
        name = f"{split}_records"
        if spec := getattr(cfg.data, name):
            path = records_path(spec, workdir, field=f"data.{name}")
            # On another host it is elsewhere.
            found[name] = spec if is_url(spec) else place_of(path)
    return replace(cfg, data=replace(cfg.data, **found))
