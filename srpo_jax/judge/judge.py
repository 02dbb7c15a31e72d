"""`srpo judge`: asks an arbiter about what was sampled, and writes verdicts beside it.

    WORKDIR/trees (and roots)    -> WORKDIR/verdicts/NAME          one part for each shard of trees
    WORKDIR/eval/NAME/answers-*  -> the same, and eval/NAME/scores.json (answers.py)

Sampling and judging have only files between them: trees can be judged while others are still being
sampled, on another machine, or again by another judge. A shard whose part is there is done; what
failed (Judgement.failed) is asked again at the next start, and nothing else.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.arbiter.chat.batch_files import MAX_MB
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.buckets.objects import is_url
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.tree_parts import planned
from srpo_jax.data_pipelines.tree_store import fingerprint, read_shards, shards_of
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, VerdictSet, branch_label
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json
from srpo_jax.judge.answers import Measured, judge_answers
from srpo_jax.judge.batches import check_batch
from srpo_jax.judge.batches import read_batch as take_answers
from srpo_jax.judge.batches import write_batch as write_requests
from srpo_jax.judge.dry_run import dry_run as dry
from srpo_jax.judge.results.summary import LabelCounts, format_summary
from srpo_jax.judge.stage import (
    Asking,
    Batch,
    judge_shards,
    open_verdicts,
)
from srpo_jax.judge.usage import TREES
from srpo_jax.keepers import look_again

SUMMARY = "summary.json"  # in the folder of a verdict set
WAIT_SECONDS = 5.0  # between two looks at an exploration that is still running


def judge(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    arbiter: Arbiter | None = None,
    name: str = "",
    answers: str = "",
    follow: bool = False,
    cache: str = "readwrite",
    allow_upload: bool = False,
    dry_run: bool = False,
    write_batch: str = "",
    read_batch: str = "",
    batch_mb: float = MAX_MB,
    benchmark: Measured | None = None,
) -> dict[str, Any]:
    """Judge the trees of a workdir (cfg.data.trees, default WORKDIR/trees, and WORKDIR/roots), or
    finish that. Returns what the verdict set's summary.json says (nothing for roots alone), and as
    "usage" the tokens of this call, for an arbiter that counts them.

    arbiter: instead of the one that cfg.arbiter.kind names. name: of the set; default: the
    arbiter's name and the digest of all that decides its verdicts. answers: judge this evaluation
    instead, and return what its scores.json says. follow: wait for the shards of an exploration
    that is still running. cache: of a chat model's raw replies, WORKDIR/replies: "readwrite",
    "readonly" (nothing is asked) or "off". allow_upload: pictures may be sent to another machine.
    dry_run: only print what would be asked. write_batch: write that into this batch file instead,
    of at most batch_mb MiB, else into several; returns {"files"}. read_batch: judge by the answers
    in these files, folders or patterns (commas between) and by what the cache has; nothing is
    asked. benchmark: what the answers are to, see evaluate/benchmarks/registry.py.
    Errors: UserError for settings, or when a set of that name is another judge's; RunFailure when
    more than cfg.arbiter.max_error_fraction of what was asked could not be judged (the verdicts are
    kept, and what failed is asked again at the next start).

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py")
        print(srpo_jax.judge(config, "runs/mini")["questions_with_pair"])
        scores = srpo_jax.judge(config, "runs/mini", answers="after")
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    batch = Batch(write_batch, read_batch, batch_mb)
    asking = Asking(arbiter, name, cache, allow_upload, dry_run, batch)
    check_batch(cfg, asking, follow=follow)
    if answers:
        return judge_answers(cfg, workdir, answers, asking, benchmark)
    if is_url(cfg.data.trees):
        raise UserError(
            f"config.data.trees is {cfg.data.trees}: verdicts are written beside the trees, and a "
            "bucket is only read; mount it (docs/places.md) and give the folder"
        )
    trees = pathlib.Path(cfg.data.trees or workdir / "trees")
    roots = trees.parent / "roots"
    if not follow and not shards_of(roots) and not shards_of(trees):
        raise UserError(f"{trees}: no trees to judge; run `srpo explore` first")
    place, scope = trees.parent, cfg.arbiter.scope
    shards, used = _shards(roots, trees, follow), None
    if write_batch:
        return write_requests(cfg, place, asking, list(shards), scope=scope)
    if read_batch:
        shards = list(shards)
        asking, used = take_answers(cfg, place, asking, shards, TREES, scope=scope)
    verdicts, arbiter, about = open_verdicts(cfg, place, asking, scope=scope)
    if dry_run:
        print(dry(cfg, verdicts, arbiter, about, _shards(roots, trees, False)))
        return {}
    assert verdicts is not None  # as this is no dry run
    counted = attrgetter("errors")
    usage = judge_shards(
        cfg, verdicts, arbiter, shards, place=place, stage=TREES, counted=counted, used=used
    )
    summary = write_verdict_summary(cfg, trees, verdicts) if shards_of(trees) else {}
    return {**summary, **usage}


def write_verdict_summary(
    cfg: Config, trees: pathlib.Path, verdicts: VerdictSet, counts: LabelCounts | None = None
) -> dict[str, Any]:
    """Prints the table of the judged trees and writes it into the set, as summary.json. counts: by
    label_rules(cfg), of who has just written all of the trees; without them they are read.
    """
    rules = label_rules(cfg)
    if counts is None:
        counts = LabelCounts(**rules)
        keep = cfg.explore.keep_irregular
        for tree in JudgedTrees(read_shards(trees), verdicts, keep_irregular=keep):
            counts.add(tree)
    summary = counts.found()
    print(format_summary(summary), flush=True)
    summary = {
        **summary,
        **rules,
        "judge": {name: verdicts.judge[name] for name in ("arbiter", "digest")},
        "trees": fingerprint(trees),
    }
    write_json(verdicts.folder / SUMMARY, summary)
    return summary


def label_rules(cfg: Config) -> dict[str, Any]:
    """By what verdicts become labels: branch_label's arguments."""
    return arguments(branch_label, cfg.arbiter)


def _shards(roots: pathlib.Path, trees: pathlib.Path, follow: bool) -> Iterator[pathlib.Path]:
    """The shards of both folders that are done, in name order; with `follow` those that appear
    until the exploration's own record says that all of them are there.
    """
    seen: set[pathlib.Path] = set()
    first = True
    while True:
        last = not follow or all_explored(trees)  # before the look: none can appear unseen
        if follow:
            look_again(trees)
            look_again(roots)
        fresh = [p for folder in (roots, trees) for p in shards_of(folder) if p not in seen]
        yield from fresh
        seen.update(fresh)
        if not fresh:
            if last:
                return
            if first and not seen:
                first = False
                print(f"judge: waiting for the first shard in {trees}", flush=True)
            time.sleep(WAIT_SECONDS)


def all_explored(trees: pathlib.Path) -> bool:
    """Whether every shard is there that the exploration of this folder has, by its own record."""
    try:
        count = read_json(trees / "run.json")["shards"] + len(planned(trees))
    except (OSError, UserError, KeyError):
        return False
    return len(shards_of(trees)) >= count
