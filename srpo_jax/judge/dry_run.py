"""`srpo judge --dry_run`: what judging would ask, where, and at what price. Nothing is asked."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from srpo_jax.arbiter.chat.cost import total_preview
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.data_pipelines.verdict_store import VerdictSet
from srpo_jax.judge.cases import cases_of_tree
from srpo_jax.judge.stage import not_judged

SECONDS_A_REQUEST = 2.0  # of a served judge, for the estimate of time


def dry_run(
    cfg: Config,
    verdicts: VerdictSet | None,
    arbiter: Arbiter,
    about: dict[str, Any],
    shards: Iterable[pathlib.Path],
) -> str:
    """The report: cases, what is saved, and for an arbiter that asks a chat model (one with
    `preview`) requests, host, pictures, tokens, price and time.
    """
    found = {"paths": 0, "cases": 0, "judged": 0}
    shards = list(shards)
    total = None
    for shard, (fresh, todo) in zip(shards, not_judged(cfg, verdicts, about["reads"], shards)):
        found["paths"] += sum(
            1
            for tree in read_shard(shard)
            for _ in cases_of_tree(tree, about["reads"], keep_irregular=True)
        )
        found["cases"] += fresh
        found["judged"] += fresh - len(todo)
        preview = getattr(arbiter, "preview", None)
        if preview is not None:
            shown = preview(todo)
            total = total_preview([total, shown] if total else [shown])
    todo = found["cases"] - found["judged"]
    lines = [
        f"judge: {about['arbiter']}, digest {about['digest']}",
        f"cases: {todo} to ask about; {found['paths']} paths are {found['cases']} different ones, "
        f"{found['judged']} are judged already",
    ]
    if total is not None:
        seconds = total.requests * SECONDS_A_REQUEST / cfg.judge.concurrency
        lines.append(f"requests: {total}")
        if not getattr(getattr(arbiter, "backend", None), "in_process", False):
            lines.append(
                f"time: about {seconds:.0f} s at {SECONDS_A_REQUEST:g} s a request, "
                f"{cfg.judge.concurrency} at once (judge.concurrency)"
            )
    return "\n".join([*lines, "dry run: nothing was asked, nothing was written"])
