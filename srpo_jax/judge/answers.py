"""`srpo judge --answers=NAME`: scores of what `srpo eval` wrote.

WORKDIR/eval/NAME/answers-*  ->  generations.jsonl (every answer with its verdicts), scores.json
"""

from __future__ import annotations

import json
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.data_pipelines.verdict_store import FIELDS, Verdicts, join
from srpo_jax.errors import UserError
from srpo_jax.files import check_plain_name, check_writable, write_json, write_text
from srpo_jax.judge.asking import ask, describe
from srpo_jax.judge.batches import read_batch, write_batch
from srpo_jax.judge.cases import cases_of_tree, once
from srpo_jax.judge.dry_run import dry_run
from srpo_jax.judge.results.changes import counts_by_question
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import sample_rates
from srpo_jax.judge.results.scores import chosen_options, format_scores, scores
from srpo_jax.judge.roles import (
    choice_warning,
    in_red,
    side_by_side,
    training_judge,
    warning,
)
from srpo_jax.judge.stage import Asking, judge_shards, open_verdicts
from srpo_jax.keepers import remove


class Measured(Protocol):
    """What judging has to know of a benchmark; see evaluate/benchmarks/base.py."""

    name: str
    title: str
    rubrics: str
    tested: Sequence[str]

    @property
    def published(self) -> Sequence[tuple[str, Mapping[str, float], str]]: ...

    def arbiter(self) -> Arbiter | None: ...

    def measure(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Rate]: ...


def judge_answers(
    cfg: Config,
    workdir: pathlib.Path,
    answers: str,
    asking: Asking,
    benchmark: Measured | None = None,
) -> dict[str, Any]:
    """Judges the answers of one evaluation and returns the content of its scores.json.

    answers: the name that `srpo eval` gave them. benchmark: what they are answers to, where it is
    one: then its rubrics are judged by, and its rates are in "metrics". asking, errors: as
    judge.judge; an answer that failed to be judged is counted as ERROR, and asked again at the next
    call. {} of a dry run, {"files"} when a batch was written.
    """
    check_plain_name(answers, "--answers")
    folder = workdir / "eval" / answers
    about, shards = read_answers(folder)
    stage, used = f"answers {answers}", None
    if about.get("benchmark"):
        if benchmark is None:
            raise UserError(
                f"the answers {answers} are to the benchmark {about['benchmark']}: hand it in as "
                "benchmark=find_benchmark(...), of srpo_jax.evaluate.benchmarks.registry"
            )
        arbiter = asking.arbiter or benchmark.arbiter()
        asking = asking._replace(arbiter=arbiter, rubric=benchmark.rubrics)
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
        row
        for shard in shards
        for tree in read_shard(shard)
        for row in answer_rows(join(tree, verdicts, keep_irregular=keep))
    ]
    metrics = {**(benchmark.measure(rows) if benchmark else {}), **sample_rates(rows)}
    result = {
        **scores(rows),
        **({"benchmark": benchmark.name} if benchmark else {}),
        "metrics": {name: found._asdict() for name, found in metrics.items()},
        **{key: about[key] for key in ("policy_digest", "prompt_digest", "decoding")},
        "judge": {key: verdicts.judge[key] for key in ("arbiter", "digest", "spec")},
        "verdicts": verdicts.name,
    }
    if benchmark and benchmark.tested:
        result["tested"] = counts_by_question(benchmark.measure, rows, benchmark.tested)
    if "chosen" in about:  # best of several, by the verdicts of this judge
        result["chosen"] = about["chosen"]
    if training := training_judge(workdir):
        result["training_judge"] = training
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    # Scores without their generations would be worse than none: they go first.
    remove(folder / "scores.json")
    write_text(folder / "generations.jsonl", "".join(lines))
    write_json(folder / "scores.json", result)
    if not chosen_options(result):
        print(format_scores(result, answers), flush=True)
    if metrics:
        print(format_metrics(metrics, benchmark.title if benchmark else answers), flush=True)
    if benchmark and benchmark.published:
        print(format_published(benchmark.published), flush=True)
    judged = f"{judge['arbiter']}, digest {judge['digest']}, verdict set {verdicts.name}"
    print(f"{answers}: judged by {judged}", flush=True)
    if training:
        found = verdicts.judge
        print(side_by_side(training, str(training.get("set", "-")), found, verdicts.name))
        if said := warning(training, found):
            print(in_red(textwrap.fill(said, 100)), flush=True)
    if "chosen" in about:
        by = about["chosen"]["judge"]
        print(f"{answers}: chosen by {by['arbiter']}, digest {by['digest']}", flush=True)
        if said := choice_warning(result):
            print(in_red(textwrap.fill(said, 100)), flush=True)
    return result


def judged_now(
    cfg: Config, arbiter: Arbiter, trees: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The lines of generations.jsonl of answers that are judged here and now, and kept nowhere.
    trees: of answers, as a shard of them has. Errors: UserError as of asking.describe.
    """
    about, keep = describe(arbiter, cfg.arbiter.kind), cfg.explore.keep_irregular
    cases = once(
        keyed
        for tree in trees
        for keyed in cases_of_tree(tree, about["reads"], keep_irregular=keep)
    )
    found = ask(arbiter, list(cases.values()), timeout=cfg.arbiter.timeout_seconds)
    verdicts = _Asked(about, dict(zip(cases, found, strict=True)))
    return [row for tree in trees for row in answer_rows(join(tree, verdicts, keep_irregular=keep))]


class _Asked(Verdicts):
    """Verdicts that lie in no folder. judge: as judge.json. rows: by key."""

    def __init__(self, judge: dict[str, Any], rows: Mapping[str, dict[str, Any]]):
        self.judge, self.reads, self._rows = judge, tuple(judge["reads"]), rows

    def get(self, key: str) -> dict[str, Any] | None:
        """See Verdicts.get."""
        return self._rows.get(key)


def answer_rows(tree: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of generations.jsonl that a question has, one a sample. tree: joined with its
    verdicts.
    """
    for branch in tree["branches"]:
        yield {
            "id": tree["id"],
            "sample": branch["k"],
            "image": tree["images"][0]["name"] if tree["images"] else None,
            "question": tree["question"],
            "category": tree["category"],
            "risky": tree["risky"],
            "meta": tree["meta"],
            "text": branch["text"],
            "steps": branch["step_texts"],
            "reply": branch["reply_text"],
            "status": branch["status"],
            "finished": branch["finished"],
            **{name: branch[name] for name in FIELDS if name != "failed"},
        }


def format_metrics(metrics: Mapping[str, Rate], title: str) -> str:
    """The rates of a benchmark as text lines for a terminal; "-" where nothing was counted."""
    lines = [title]
    width = max(map(len, metrics))
    for name, found in metrics.items():
        if found.value is None:
            lines.append(f"  {name:<{width}}{'-':>7}")
            continue
        within = "" if found.low is None else f"  [{found.low:.1f}, {found.high:.1f}]"
        lines.append(f"  {name:<{width}}{found.value:>7.1f} %  {found.k}/{found.n}{within}")
    return "\n".join(lines)


def format_published(published: Sequence[tuple[str, Mapping[str, float], str]]) -> str:
    """Figures of others as text lines: (model, figures, where they stand) each."""
    lines, last = [], ""
    for model, figures, source in published:
        if source != last:
            lines.append(f"published, by another judge than this one ({source}):")
        told = ", ".join(f"{name} {value:g}" for name, value in figures.items())
        lines.append(f"  {model}: {told}")
        last = source
    return "\n".join(lines)
