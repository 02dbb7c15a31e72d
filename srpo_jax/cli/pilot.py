"""`srpo pilot`: the stages of the full run on a few questions, and what they say of it.

    explore -> judge -> measure -> one gradient of each term -> report

Every stage is the one that its own verb runs, in WORKDIR/pilot: trees, verdicts, and beside them

    times.json      seconds of each shard and of judging, over all starts of the pilot
    to_label.jsonl  branches for a person to judge, for --labels
    pilot.json      all that was measured, and the report's rows

The same command again goes on where it stopped, and measures again what is done.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.cli.pilot_report import Typed, needs_warmup, report_rows, show
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import (
    JudgedTrees,
    VerdictSet,
    branch_label,
    find_set,
    set_names,
)
from srpo_jax.distributed import compile_cache
from srpo_jax.errors import UserError
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import sampling_params
from srpo_jax.files import read_json, write_json
from srpo_jax.inference.policy import choose_questions
from srpo_jax.judge.judge import judge
from srpo_jax.judge.results.measures import measure
from srpo_jax.judge.stage import check_arbiter
from srpo_jax.judge.trust.labels import agreement, read_labels, to_label, write_to_label
from srpo_jax.keepers import place_of
from srpo_jax.train.gradient_share import gradient_norms
from srpo_jax.train.setup import check_attention, make_setup

FOLDER = "pilot"  # in the workdir
TO_LABEL = 100  # branches that a person is asked about
MOST_ERRORS = 0.5  # a judge that fails more often has to be mended before anything is measured


def pilot(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    questions: int = 50,
    labels: str | os.PathLike = "",
    run: str | os.PathLike = "",
    allow_upload: bool = False,
    typed: Sequence[str] = ("--config=FILE",),
) -> dict[str, Any]:
    """Explore and judge `questions` of the training records in WORKDIR/pilot, print the report, and
    return what pilot.json holds.

    labels: JSONL of a person's verdicts, see judge.labels.read_labels. run: the workdir of a run
    whose newest checkpoint is the policy, on cfg.model.path. allow_upload: as of judge. typed: the
    --config=... words of a command line that stands for cfg, for the commands that the report
    advises.
    Errors: UserError as of the stages, and when WORKDIR/pilot holds another pilot's trees.
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    known_labels = read_labels(labels) if labels else None  # told before hours of work
    folder = workdir / FOLDER
    source = records_path(cfg.data.train_records, workdir, field="data.train_records")
    wanted = choose_questions(read_records(source), cfg.explore.num_questions, seed=cfg.seed)
    check_arbiter(cfg, sum(len(r.images) for r in wanted), allow_upload=allow_upload)
    small = pilot_config(cfg, str(source), folder, min(questions, len(wanted)))
    params = sampling_params(small, run)[1] if run else None

    times = Times(folder / "times.json")
    ask = functools.partial(_judge, small, folder, times, allow_upload)
    explore(
        small, folder, params=params, judge_roots=ask, on_shard=times.shard, refuse_unreadable=False
    )
    ask()
    verdicts = newest_set(folder / "trees")
    small = dataclasses.replace(
        small, arbiter=dataclasses.replace(small.arbiter, verdicts=verdicts.name)
    )

    keep = small.explore.keep_irregular
    trees = JudgedTrees(read_shards(folder / "trees"), verdicts, keep_irregular=keep)
    rules = arguments(branch_label, cfg.arbiter)
    pairing = {
        name: getattr(cfg.objective, name) for name in ("pairing", "max_pairs", "branch_points")
    }
    found: dict[str, Any] = measure(trees, keep_irregular=keep, **rules, **pairing)
    rows = to_label(trees, TO_LABEL, keep_irregular=keep, sampled_by=verdicts.name)
    write_to_label(folder / "to_label.jsonl", rows)
    found["agreement"] = None if known_labels is None else agreement(trees, known_labels)
    found["gradient"] = _gradient(small, folder, found, params)
    found["full_run"] = full_run(cfg, len(wanted), found["questions"], times, verdicts)
    found["warmup_steps"] = None
    if needs_warmup(found):
        found["warmup_steps"] = _warmup_steps(small, folder, len(wanted))
    found["judge"] = {name: verdicts.judge[name] for name in ("arbiter", "digest")}

    home, begun = (place_of(place) for place in (workdir, run))
    commands = Typed(tuple(typed), home, begun, str(labels), questions, allow_upload)
    report = report_rows(cfg, found, commands)
    found["report"] = [row.to_json() for row in report]
    write_json(folder / "pilot.json", found)
    print(f"\n{show(report, found, commands)}", flush=True)
    return found


def pilot_config(cfg: Config, source: str, folder: pathlib.Path, questions: int) -> Config:
    """The settings of the full run for so many questions of the records in the file `source`.

    A pilot that has begun keeps its number of shards.
    """
    shards = max(1, min(cfg.explore.shards, questions))
    try:
        shards = int(read_json(folder / "trees" / "run.json")["shards"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        pass
    errors = max(cfg.arbiter.max_error_fraction, MOST_ERRORS)
    return dataclasses.replace(
        cfg,
        data=dataclasses.replace(cfg.data, train_records=source, trees=""),
        explore=dataclasses.replace(cfg.explore, num_questions=questions, shards=shards),
        arbiter=dataclasses.replace(cfg.arbiter, verdicts="", max_error_fraction=errors),
    )


class Times:
    """What took how long, kept in a file over all starts of the pilot.

    shards: {"stage", "questions", "seconds"}: seconds since the shard before, without compiling.
    judged: {"set", "cases", "seconds", "usage"}.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        stored = read_json(path) if path.is_file() else {}
        self.shards: list[dict[str, Any]] = stored.get("shards", [])
        self.judged: list[dict[str, Any]] = stored.get("judged", [])

    def shard(self, stage: str, questions: int, seconds: float) -> None:
        """Notes a shard of an exploration; see explore's on_shard."""
        self.shards.append({"stage": stage, "questions": questions, "seconds": seconds})
        self._write()

    def judging(self, name: str, cases: int, seconds: float, usage: Any) -> None:
        """Notes that so many cases of a verdict set were judged."""
        self.judged.append({"set": name, "cases": cases, "seconds": seconds, "usage": usage})
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"shards": self.shards, "judged": self.judged})


def _judge(cfg: Config, folder: pathlib.Path, times: Times, allow_upload: bool) -> None:
    """Judges what is there, and notes how long what was asked took."""
    before = _verdicts_there(folder)
    begin = time.monotonic()
    summary = judge(cfg, folder, allow_upload=allow_upload)
    for name, count in _verdicts_there(folder).items():
        if cases := count - before.get(name, 0):
            times.judging(name, cases, time.monotonic() - begin, summary.get("usage"))


def _verdicts_there(folder: pathlib.Path) -> dict[str, int]:
    trees = folder / "trees"
    return {name: len(find_set(trees, name).rows()) for name in set_names(trees)}


def newest_set(trees: pathlib.Path) -> VerdictSet:
    """The verdict set beside the trees that was written last: the one of this call's judge."""
    sets = [find_set(trees, name) for name in set_names(trees)]
    return max(sets, key=lambda each: (each.folder / "summary.json").stat().st_mtime_ns)


def _gradient(
    cfg: Config, folder: pathlib.Path, found: dict[str, Any], params: Any
) -> dict[str, Any]:
    """{"ref", "exp", "exp_share", "why_not"}: norms of both terms of the loss on the first batch.

    Uses `params` up. why_not: why nothing was measured, else "".
    """
    nothing = {"ref": None, "exp": None, "exp_share": None}
    if cfg.objective.lambda_exp == 0 or cfg.objective.ref_coef == 0:
        return {**nothing, "why_not": "the objective has one term"}
    if not found["groups"]["all"]["pairs"]:
        return {**nothing, "why_not": "no pair"}
    compile_cache.use(cfg.train.compilation_cache)
    setup = make_setup(cfg, folder)
    check_attention(setup)
    norms = gradient_norms(cfg, setup, params)
    return {**norms._asdict(), "exp_share": norms.exp_share, "why_not": ""}


def _warmup_steps(cfg: Config, folder: pathlib.Path, questions: int) -> int:
    """Steps of one epoch over the reference paths of so many questions, as the warm-up packs them:
    counted for the pilot's and scaled.
    """
    objective = dataclasses.replace(
        cfg.objective, lambda_exp=0.0, ref_coef=1.0, reference="dataset"
    )
    if cfg.pack.questions:
        return math.ceil(questions / cfg.pack.questions)
    batches = make_setup(dataclasses.replace(cfg, objective=objective), folder).batches
    rows = len(batches.plan(0).rows) / len(batches.used) * questions
    return max(1, math.ceil(rows / cfg.pack.rows))


def full_run(
    cfg: Config, questions: int, explored: int, times: Times, verdicts: VerdictSet
) -> dict[str, Any]:
    """What exploring and judging so many questions would take, by what `explored` ones took.

    {"questions", "explore_seconds", "judge_cases", "judge_seconds", "tokens_in", "tokens_out",
    "dollars"}; None for what is not known. Compiling is not counted. Usage is what the judge's
    summary says under "usage", if anything.
    """
    seconds = 0.0
    for stage in {shard["stage"] for shard in times.shards}:
        own = [shard for shard in times.shards if shard["stage"] == stage]
        taken = sum(shard["seconds"] for shard in own)
        seconds += taken / sum(shard["questions"] for shard in own) * questions
    cases = len(verdicts.rows()) / explored * questions
    asked = [each for each in times.judged if each["set"] == verdicts.name]
    judged = sum(each["cases"] for each in asked)
    usage = [each["usage"] for each in asked if each["usage"]]
    told = sum(each["cases"] for each in asked if each["usage"])
    tokens = {
        name: round(sum(each.get(name, 0) for each in usage) / told * cases) if told else None
        for name in ("tokens_in", "tokens_out")
    }
    price = cfg.judge.price_input, cfg.judge.price_output
    paid = sum(each.get("dollars") or 0 for each in usage)
    dollars = None
    if told and any(price):
        dollars = sum(n * p for n, p in zip(tokens.values(), price) if n) / 1e6
    elif told and paid:  # the members of a panel have prices of their own
        dollars = paid / told * cases
    spent = sum(each["seconds"] for each in asked)
    return {
        "questions": questions,
        "explore_seconds": seconds if times.shards else None,
        "judge_cases": round(cases),
        "judge_seconds": spent / judged * cases if judged else None,
        **tokens,
        "dollars": dollars,
    }
