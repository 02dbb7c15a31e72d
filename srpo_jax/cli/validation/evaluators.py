"""What a run looks at during training besides its loss: answers that are judged, and how harmless
questions are answered now. Handed in to the loop by `srpo train`.

    safety_rate, path_safety_rate, effectiveness_rate, both_all, error_rate, readable
                         greedy answers to the validation questions, in percent, by the arbiter of
                         the config where it can be asked here (judge/results/scores.py)
    benign_perplexity    of the base policy's own greedy answers to data.benign_records
    benign_agreement     share of the tokens of those answers that the policy would say too
    BENCHMARK/...        of each of eval.benchmarks, see benchmarks.py
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from srpo_jax.arbiter.registry import make_arbiter
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.buckets.fetch import local_folder
from srpo_jax.cli.validation.benchmarks import Benchmarks, asked_here, without_weights
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.data_pipelines.path_formats.statuses import OK
from srpo_jax.data_pipelines.records import Record, read_records, records_digest
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.data_pipelines.verdict_store import unjudged
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.evaluate.answering import Decoding
from srpo_jax.evaluate.evaluate import make_engine
from srpo_jax.files import read_json, write_json
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import Sample, SampleRequest
from srpo_jax.inference.forced_answers import ForcedAnswers
from srpo_jax.inference.policy import choose_questions, load_network
from srpo_jax.judge.answers import judged_now
from srpo_jax.judge.asking import describe
from srpo_jax.judge.results.scores import scores
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.train.validation.validation import Evaluator

RATES = ("safety_rate", "path_safety_rate", "effectiveness_rate", "both_all", "error_rate")
BENIGN = pathlib.Path("validation", "benign.json")  # in the workdir: the base policy's answers


def make_evaluators(
    cfg: Config, records: Sequence[Record], workdir: pathlib.Path
) -> list[Evaluator]:
    """See train.validation.validation.MakeEvaluators. Errors: UserError for records, benchmarks and
    arbiters.

    An arbiter that is a server, or needs a device, is not asked: a run must not wait for one.
    """
    found: list[Evaluator] = []
    if records and asked_here(cfg):
        arbiter = make_arbiter(cfg.arbiter.kind, cfg.judge, config=cfg)
        found.append(JudgedAnswers(cfg, records, arbiter))
    elif records and jax.process_index() == 0:
        say(
            f"note: arbiter.kind={cfg.arbiter.kind} is not asked during training; of the "
            "validation questions only the loss on their reference paths is looked at"
        )
    if cfg.data.benign_records:
        found.append(Benign(cfg, workdir))
    if cfg.eval.benchmarks:
        found.append(Benchmarks(cfg, workdir))
    return found


class Greedy:
    """Greedy answers to the same questions again and again, each time by other weights."""

    def __init__(self, cfg: Config, records: Sequence[Record]):
        self.policy = without_weights(cfg)
        self.records, self._cfg = records, cfg
        self.room = self.policy.budgets(records, [0] * len(records))
        self._engine: Engine | None = None

    def __call__(self, params: Any) -> list[Sample]:
        """One for each record, in order."""
        if self._engine is None:
            self._engine = self._make(params)
        self._engine.params = params
        requests = (
            SampleRequest(
                *(self.policy.encode(record), np.zeros(0, np.int32), (0,), (0,)),
                name=f"record {record.id!r}",
            )
            for record in self.records
        )
        found = dict(self._engine.stream(requests))
        self._engine.leave_device()
        return [found[i][0] for i in range(len(self.records))]

    def _make(self, params: Any) -> Engine:
        policy = dataclasses.replace(self.policy, params=params)
        greedy = Decoding(0.0, 1, self._cfg.eval.max_new_tokens, "", self._cfg.seed)
        return make_engine(self._cfg, policy, greedy, self.room, len(self.records))


class JudgedAnswers:
    """Rates of greedy answers, judged here and now."""

    def __init__(self, cfg: Config, records: Sequence[Record], arbiter: Arbiter):
        self._cfg, self._arbiter = cfg, arbiter
        describe(arbiter, cfg.arbiter.kind)
        self._greedy = Greedy(cfg, records)
        self.names = [*_counted(records, arbiter), "readable"]

    def prepare(self) -> None:
        """Nothing: its memory is taken at the first look."""

    def __call__(self, params: Any) -> dict[str, float]:
        samples = self._greedy(params)
        return as_first_says(lambda: self._judged(samples))

    def _judged(self, samples: Sequence[Sample]) -> dict[str, float]:
        policy = self._greedy.policy
        trees = []
        for record, sample in zip(self._greedy.records, samples, strict=True):
            branch = policy.branch((), 0, 0, sample.tokens.tolist(), sample)
            trees.append(make_tree_record(record, (), [branch], {}, policy.path_format))
        rows = judged_now(self._cfg, self._arbiter, trees)
        rates = scores(rows)
        found = {name: float(rates[name]) for name in RATES if rates[name] is not None}
        return {**found, "readable": 100 * float(np.mean([row["status"] == OK for row in rows]))}


def _counted(records: Sequence[Record], arbiter: Arbiter) -> list[str]:
    """Those of RATES that such records have whatever is answered."""
    rows = [{"risky": r.risky, "category": r.category, **unjudged("")} for r in records]
    found = scores(rows)
    paths = getattr(arbiter, "judges_paths", True)
    return [n for n in RATES if found[n] is not None and (paths or n != "path_safety_rate")]


class Benign:
    """How far a policy has come from the base policy where nothing was to change: on the base
    policy's greedy answers to data.benign_records, which are kept in the workdir.
    """

    def __init__(self, cfg: Config, workdir: pathlib.Path):
        spec = records_path(cfg.data.benign_records, workdir, field="data.benign_records")
        known = read_records(spec)
        records = choose_questions(known, cfg.eval.validation_questions, seed=cfg.seed)
        self.names = ("benign_perplexity", "benign_agreement")
        self._cfg, self._file, self._greedy = cfg, workdir / BENIGN, Greedy(cfg, records)

    def prepare(self) -> None:
        """Samples the answers, or reads those that are kept."""
        greedy = self._greedy
        self._answers = _base_answers(self._cfg, greedy, self._file)
        longest = max(map(len, self._answers))
        tokens, patches = greedy.room
        self._taken = ForcedAnswers(
            greedy.policy, tokens=tokens + longest, patches=patches, answer=longest
        )

    def __call__(self, params: Any) -> dict[str, float]:
        policy = self._greedy.policy
        prompts = [policy.encode(record) for record in self._greedy.records]
        taken = self._taken(params, prompts, self._answers)
        return {"benign_perplexity": taken.perplexity, "benign_agreement": taken.agreement}


def _base_answers(cfg: Config, greedy: Greedy, file: pathlib.Path) -> list[list[int]]:
    """Token ids of the base policy's answers: those of the file, if it is of the same policy and
    questions, else sampled and kept there."""

    def found() -> list[list[int]] | None:
        kept = read_json(file) if file.is_file() else {}
        return kept["answers"] if kept.get("of") == about else None

    about = {
        "policy_digest": policy_digest(local_folder(cfg.model.path)),
        "prompt_digest": greedy.policy.prompt_digest,
        "records": records_digest(greedy.records),
        "max_new_tokens": cfg.eval.max_new_tokens,
        "dtype": cfg.model.dtype,
    }
    kept = as_first_says(found)
    if kept is not None:
        return kept
    params = load_network(cfg, local_folder(cfg.model.path)).params
    answers = [sample.tokens.tolist() for sample in greedy(params)]
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"of": about, "answers": answers})
    return answers
