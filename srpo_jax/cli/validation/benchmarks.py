"""Benchmarks that a run looks at: a sample of each, answered by its protocol and judged at once.

They are test sets. Each look is counted in the workdir (runs/looks.py), and no checkpoint is chosen
by what it finds (config/check.py).
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax

from srpo_jax.arbiter.registry import find_arbiter, make_arbiter
from srpo_jax.arbiter.verdict import Arbiter
from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.benchmarks.registry import chosen, find_benchmark
from srpo_jax.evaluate.choosing import check_alone
from srpo_jax.evaluate.evaluate import Task, make_task
from srpo_jax.inference.policy import Policy, params_digest, sampling_model
from srpo_jax.inference.prompting import load_asking
from srpo_jax.inference.sampling_mesh import sampling_mesh
from srpo_jax.judge.answers import judged_now
from srpo_jax.judge.asking import describe
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.looks import tell_look

NAMES, DATA = "config.eval.benchmarks", "config.eval.benchmark_data"


def asked_here(cfg: Config) -> bool:
    """Whether the arbiter of cfg needs no server and no device, so that a run can ask it."""
    return bool(getattr(find_arbiter(cfg.arbiter.kind), "in_process", False))


def without_weights(cfg: Config) -> Policy:
    """The policy that is trained, as it samples, its parameters and their digest left out."""
    config = load_model_config(local_folder(cfg.model.path), cfg.model.family)
    mesh = sampling_mesh(cfg, config)
    asking = load_asking(cfg, local_folder(cfg.model.path), config.family)
    return Policy(sampling_model(cfg, config, mesh), None, asking, "", mesh)


class Benchmarks:
    """The rates of cfg.eval.benchmarks as NAME/RATE, in percent. Errors: UserError for data and
    settings, and for a benchmark that only a judge elsewhere can judge.
    """

    names = ()  # which rates there are depends on the answers, and none of them chooses

    def __init__(self, cfg: Config, workdir: pathlib.Path):
        self._cfg, self._workdir, self._policy = cfg, workdir, without_weights(cfg)
        told = chosen(cfg.eval.benchmarks, cfg.eval.benchmark_data, "", fields=(NAMES, DATA))
        self._tasks = [self._task(*each) for each in told]

    def _task(self, spec: str, data: str, name: str) -> tuple[Task, Arbiter]:
        cfg, policy = self._cfg, self._policy
        arbiter = _judge(cfg, find_benchmark(spec, NAMES))
        count = cfg.eval.validation_questions
        task = make_task(cfg, self._workdir, name, spec, data, count=count, fields=(NAMES, DATA))
        task.check_prompt(policy.prompt)
        if task.choosing:
            check_alone(policy, task.choosing)
        policy.budgets(task.records, [0] * len(task.records))  # looks at every picture
        return task, arbiter

    def prepare(self) -> None:
        """Nothing: its memory is taken at each look."""

    def __call__(self, params: Any) -> dict[str, float]:
        digest = params_digest(params, local_folder(self._cfg.model.path))
        policy = dataclasses.replace(self._policy, params=params, digest=digest)
        found: dict[str, float] = {}
        for task, arbiter in self._tasks:
            found |= self._look(task, arbiter, policy)
        return found

    def _look(self, task: Task, arbiter: Arbiter, policy: Policy) -> dict[str, float]:
        about = task.about(policy)
        answered = sorted(task.answerer(policy, about).answers(task.records), key=lambda a: a[0])

        def rates() -> dict[str, float]:
            assert task.benchmark is not None  # as each is one
            form = policy.path_format
            trees = [make_tree_record(record, (), own, {}, form) for _, record, own in answered]
            measured = task.benchmark.measure(judged_now(self._cfg, arbiter, trees))
            shown = {name: each.value for name, each in measured.items()}
            return {f"{task.name}/{n}": float(v) for n, v in shown.items() if v is not None}

        found = as_first_says(rates)
        if jax.process_index() == 0:
            tell_look(self._workdir, task.name, about)
        return found


def _judge(cfg: Config, benchmark: Benchmark) -> Arbiter:
    """Errors: UserError when it cannot be asked during training."""
    arbiter = benchmark.arbiter()
    if arbiter is None and not asked_here(cfg):
        raise UserError(
            f"{NAMES} has {benchmark.name}, but its judge, arbiter.kind={cfg.arbiter.kind}, is not "
            "asked during training: leave it out, and run `srpo eval --benchmark="
            f"{benchmark.name}` and `srpo judge` on what was exported"
        )
    if arbiter is None:
        arbiter = make_arbiter(cfg.arbiter.kind, cfg.judge, config=cfg, rubric=benchmark.rubrics)
    describe(arbiter, cfg.arbiter.kind)
    return arbiter
