"""`srpo judge --answers=NAME`: scores of what `srpo eval` wrote.

WORKDIR/eval/NAME/answers-*  ->  generations.jsonl (every answer with its verdicts), scores.json
"""

from __future__ import annotations

import json
import pathlib
import textwrap
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.data_pipelines.verdict_store import FIELDS, join
from srpo_jax.files import check_plain_name, check_writable, write_json, write_text
from srpo_jax.judge.batches import read_batch, write_batch
from srpo_jax.judge.dry_run import dry_run
from srpo_jax.judge.results.scores import format_scores, scores
from srpo_jax.judge.roles import in_red, side_by_side, training_judge, warning
from srpo_jax.judge.stage import Asking, judge_shards, open_verdicts


def judge_answers(
    cfg: Config,
    workdir: pathlib.Path,
    answers: str,
    asking: Asking,
) -> dict[str, Any]:
    """Judges the answers of one evaluation and returns the content of its scores.json.

    answers: the name that `srpo eval` gave them. score: from the rows of generations.jsonl to
    rates (judge/results/scores.py). asking, errors: as judge.judge; an
    answer that failed to be judged is counted as ERROR, and asked again at the next call. {} of a
    dry run, {"files"} when a batch was written.
    """
    check_plain_name(answers, "--answers")
    folder = workdir / "eval" / answers
    about, shards = read_answers(folder)
    stage, used = f"answers {answers}", None
    if asking.batch.write:
        return write_batch(cfg, workdir, asking, shards)
    if asking.batch.read:
        asking, used = read_batch(cfg, workdir, asking, shards, stage)
    if not asking.dry_run:
        check_writable(folder)
    verdicts, arbiter, judge = open_verdicts(cfg, workdir, asking)
    if asking.dry_run:
        print(dry_run(cfg, verdicts, arbiter, judge, shards), flush=True)
        return {}
    assert verdicts is not None  # as this is no dry run
    # What the judge holds for ERROR is part of the scores; only what failed says nothing.
    counted = attrgetter("failed")
    judge_shards(
        cfg, verdicts, arbiter, shards, place=workdir, stage=stage, counted=counted, used=used
    )
    keep = cfg.explore.keep_irregular
    rows = [
        _row(join(tree, verdicts, keep_irregular=keep))
        for shard in shards
        for tree in read_shard(shard)
    ]
    result = {
        **scores(rows),
        **{key: about[key] for key in ("policy_digest", "prompt_digest", "decoding")},
        "judge": {key: verdicts.judge[key] for key in ("arbiter", "digest", "spec")},
        "verdicts": verdicts.name,
    }
    if training := training_judge(workdir):
        result["training_judge"] = training
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    # Scores without their generations would be worse than none: they go first.
    (folder / "scores.json").unlink(missing_ok=True)
    write_text(folder / "generations.jsonl", "".join(lines))
    write_json(folder / "scores.json", result)
    print(format_scores(result, answers), flush=True)
    judged = f"{judge['arbiter']}, digest {judge['digest']}, verdict set {verdicts.name}"
    print(f"{answers}: judged by {judged}", flush=True)
    if training:
        found = verdicts.judge
        print(side_by_side(training, str(training.get("set", "-")), found, verdicts.name))
        if said := warning(training, found):
            print(in_red(textwrap.fill(said, 100)), flush=True)
    return result


def _row(tree: Mapping[str, Any]) -> dict[str, Any]:
    """One line of generations.jsonl."""
    (branch,) = tree["branches"]
    return {
        "id": tree["id"],
        "image": tree["images"][0]["name"] if tree["images"] else None,
        "question": tree["question"],
        "category": tree["category"],
        "risky": tree["risky"],
        "text": branch["text"],
        "steps": branch["step_texts"],
        "reply": branch["reply_text"],
        "status": branch["status"],
        "finished": branch["finished"],
        **{name: branch[name] for name in FIELDS if name != "failed"},
    }
