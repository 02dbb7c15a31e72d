"""Evaluation: the policy answers held-out questions greedily; path and reply are judged apart.

records -> WORKDIR/eval/NAME/generations.jsonl (every answer as generated, with its verdicts)
           WORKDIR/eval/NAME/scores.json       (evaluate/scores.py)
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from srpo_jax.arbiter.registry import make_arbiter
from srpo_jax.arbiter.verdict import Arbiter, Case
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.path_format import parse_path
from srpo_jax.data_pipelines.prompt import check_disjoint
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.evaluate.scores import format_scores, scores
from srpo_jax.files import write_json, write_text
from srpo_jax.inference.policy import Policy, choose_questions, load_policy
from srpo_jax.inference.prefix_sampler import Sampler, SampleRequest


def evaluate(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    name: str,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
    arbiter: Arbiter | None = None,
) -> dict[str, Any]:
    """Answer the questions of cfg.eval.split and score the answers. Returns scores.json's content.

    name: folder under WORKDIR/eval; an evaluation of that name is replaced when the new one is
    complete. model_dir: the policy, instead of cfg.model.path. params: use these instead of that
    folder's weights. arbiter: instead of the one that cfg.arbiter.kind names. Raises UserError for
    bad records or settings.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py")
        scores = srpo_jax.evaluate(config, "runs/mini", "after", model_dir="runs/mini/export")
        print(scores["safety_rate"], scores["path_safety_rate"])
    """
    cfg = as_config(cfg)
    split = cfg.eval.split
    source = records_path(cfg.data.records(split), workdir, field=f"data.{split}_records")
    known = read_records(source)
    records = choose_questions(known, cfg.eval.num_questions, seed=cfg.seed)
    arbiter = arbiter or make_arbiter(cfg.arbiter.kind)
    policy = load_policy(cfg, model_dir=model_dir, params=params)
    check_disjoint(policy.asking.encoder.prompt, known, f"data.{split}_records")
    rows = list(generate(cfg, policy, arbiter, records, name=name))
    result = {
        **scores(rows),
        "policy_digest": policy.digest,
        "prompt_digest": policy.prompt_digest,
        "decoding": {
            "temperature": 0.0,
            "max_new_tokens": cfg.eval.max_new_tokens,
            "dtype": cfg.model.dtype,
            "split": cfg.eval.split,
            "arbiter": arbiter.name,
        },
    }
    folder = pathlib.Path(workdir) / "eval" / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    # Scores without their generations would be worse than none: they go first.
    (folder / "scores.json").unlink(missing_ok=True)
    write_text(folder / "generations.jsonl", "".join(lines))
    write_json(folder / "scores.json", result)
    print(format_scores(result, name), flush=True)
    return result


def generate(
    cfg: Config, policy: Policy, arbiter, records: Sequence[Record], *, name: str
) -> Iterator[dict[str, Any]]:
    """One row of generations.jsonl per record, in order. Prints progress about once a second."""
    tokens, patches = policy.budgets(records, [0] * len(records))
    sampler = Sampler(
        policy.model,
        policy.params,
        policy.processor,
        batch=policy.rows(min(cfg.eval.batch, len(records))),
        branches=1,
        prompt_tokens=tokens,
        patches=patches,
        max_new_tokens=cfg.eval.max_new_tokens,
        temperature=0.0,
        mesh=policy.mesh,
    )
    start = last = time.monotonic()
    for done in range(0, len(records), sampler.batch):
        batch = records[done : done + sampler.batch]
        requests = [
            SampleRequest(policy.encode(r), np.zeros(0, np.int32), (0,), (0,), f"record {r.id!r}")
            for r in batch
        ]
        samples = [own[0] for own in sampler(requests)]
        texts = [policy.processor.decode(sample.tokens.tolist()) for sample in samples]
        paths = [parse_path(text) for text in texts]
        cases = [
            Case(record, steps, reply, sample.finished)
            for record, (steps, reply), sample in zip(batch, paths, samples, strict=True)
        ]
        for case, text, judgement in zip(cases, texts, arbiter.judge(cases), strict=True):
            yield _row(case, text, judgement)
        now, count = time.monotonic(), done + len(batch)
        if now - last >= 1 or count == len(records):
            last = now
            left = (now - start) / count * (len(records) - count)
            print(f"eval {name}: {count}/{len(records)} questions, {left:.0f} s left", flush=True)


def _row(case: Case, text: str, judgement) -> dict[str, Any]:
    record = case.record
    return {
        "id": record.id,
        "image": record.images[0] if record.images else None,
        "question": record.question,
        "category": record.category,
        "risky": record.risky,
        "text": text,
        "steps": list(case.steps),
        "reply": case.reply,
        "finished": case.finished,
        "reply_verdict": judgement.reply.value,
        "path_verdict": judgement.path.value,
        "step_verdicts": [verdict.value for verdict in judgement.steps],
        "effective": judgement.effective,
        "detail": judgement.detail,
    }
