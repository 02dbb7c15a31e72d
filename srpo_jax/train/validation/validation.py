"""When a run looks at held-out data, what it keeps of it, and when that ends the run.

A look is a function of the parameters alone: it draws nothing, and nothing that trains depends on
it. The best value and how long ago it was are kept in the notes of each checkpoint, so a run that
was stopped ends where it would have ended.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax

from srpo_jax.config.fields import Config
from srpo_jax.config.sections import BEST_METRICS
from srpo_jax.console import say
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.errors import UserError
from srpo_jax.inference.policy import choose_questions
from srpo_jax.train.setup import Setup
from srpo_jax.train.train_state import TrainState
from srpo_jax.train.validation.held_out import check_not_test
from srpo_jax.train.validation.loss import ValidationLoss
from srpo_jax.train.validation.sampling_weights import sampling_weights

PREFIX = "validation/"
NOTE = "validation"  # in the notes of a checkpoint: {"step", "best", "since"}


class Evaluator(Protocol):
    """What samples from the policy or asks it something: handed in, as it belongs to later rooms.
    Whatever is wrong with its settings and data is told when it is made.
    """

    @property
    def names(self) -> Sequence[str]:
        """Of what it may find, without PREFIX."""
        ...

    def prepare(self) -> None:
        """What takes a device, before the first look."""

    def __call__(self, weights: Any, /) -> dict[str, float]:
        """Numbers by name. weights: of the policy as it is now (sampling_weights)."""
        ...


# (config, validation questions, workdir) -> the evaluators of a run. It writes to the workdir only
# what the questions themselves are, and takes no device.
MakeEvaluators = Callable[[Config, Sequence[Record], pathlib.Path], Sequence[Evaluator]]


class Validation:
    """The looks of one run. To make it checks all that can be known before them, so a dry run makes
    it, too; a run calls `prepare` then, before the training state takes the memory. keep: whether
    what a later start needs is written beside the trees.

    All processes make it and call it alike. Errors: UserError for settings that need what is not
    there, for a choice by records that test, and by a metric that no look has.
    """

    def __init__(
        self,
        cfg: Config,
        setup: Setup,
        workdir: pathlib.Path,
        make_evaluators: MakeEvaluators | None = None,
        *,
        keep: bool = True,
    ):
        self._cfg, self._setup = cfg, setup
        self._metric, self._patience = cfg.train.best_metric, cfg.train.patience
        self._chooses = self._metric.startswith(PREFIX) and bool(
            cfg.train.keep_best or self._patience
        )
        self.every = cfg.eval.every
        self._loss: ValidationLoss | None = None
        self._evaluators: Sequence[Evaluator] = ()
        self._said: dict[str, Any] = {"step": -1, "best": None, "since": 0}
        if not self.every:
            return
        records = validation_records(cfg, workdir)
        if self._chooses:
            check_not_test(cfg, workdir, records)
        if cfg.data.validation_trees or records:
            paths = [record for record in records if record.has_reference]
            if cfg.data.validation_trees or paths:
                self._loss = ValidationLoss(cfg, setup, workdir, paths, keep=keep)
        if cfg.eval.benchmarks and make_evaluators is None:
            raise UserError(
                f"eval.benchmarks={cfg.eval.benchmarks} is looked at by `srpo train`; from Python "
                "hand in make_evaluators, of srpo_jax.cli.validation.evaluators"
            )
        if make_evaluators is not None:
            self._evaluators = make_evaluators(cfg, records, workdir)
        if self._loss is None and not self._evaluators:
            raise UserError(
                f"eval.every={self.every}, but there is nothing to look at: give "
                "data.validation_records, data.validation_trees, data.benign_records or "
                "eval.benchmarks"
            )
        names = list(self._loss.names) if self._loss is not None else []
        names += [name for evaluator in self._evaluators for name in evaluator.names]
        if self._chooses and self._metric.removeprefix(PREFIX) not in names:
            raise self._has_not([f"{PREFIX}{name}" for name in names])

    def prepare(self) -> None:
        """What takes a device, before the first look."""
        for evaluator in self._evaluators:
            evaluator.prepare()

    def go_on_from(self, notes: dict[str, Any]) -> None:
        """Takes over what the notes of a checkpoint say."""
        self._said = {**self._said, **notes.get(NOTE, {})}

    @property
    def notes(self) -> dict[str, Any]:
        """For the checkpoint that is saved now."""
        return {NOTE: dict(self._said)} if self.every else {}

    @property
    def spent(self) -> bool:
        """Whether the best value is so many looks ago that the run ends."""
        return bool(self._patience) and self._said["since"] >= self._patience

    def due(self, step: int) -> bool:
        """Whether there is a look after so many steps that was not made."""
        last = step == self._cfg.train.steps
        return bool(self.every) and self._said["step"] != step and (last or not step % self.every)

    def look(self, step: int, state: TrainState, writer: Any) -> dict[str, float]:
        """The values of this step under their names, written as a line of their own; {} without
        any. Errors: UserError when the metric that chooses is none of them.
        """
        begin, found = time.monotonic(), {}
        if self._loss is not None:
            found |= self._loss(state)
        if self._evaluators:
            weights = sampling_weights(self._cfg, self._setup, state)
            for evaluate in self._evaluators:
                found |= evaluate(weights)
            del weights
        values = {f"{PREFIX}{name}": value for name, value in found.items()}
        self._said["step"] = step
        if self._chooses:
            self._compare(values)
        if writer:
            writer.write(step, {**values, "perf/validation_seconds": time.monotonic() - begin})
        if self.spent and jax.process_index() == 0:
            best, since = self._said["best"], self._said["since"]
            say(
                f"train: {self._metric} was no better than {best} at {since} looks one after "
                "another (train.patience): the run ends here"
            )
        return values

    def _compare(self, values: dict[str, float]) -> None:
        value = values.get(self._metric)
        if value is None:
            raise self._has_not(values)
        best, sign = self._said["best"], BEST_METRICS[self._metric]
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            self._said.update(best=value, since=0)
        elif best is not None:
            self._said["since"] += 1

    def _has_not(self, names: Iterable[str]) -> UserError:
        return UserError(
            f"train.best_metric={self._metric}, which this run does not have; there is "
            f"{', '.join(sorted(names))}"
        )


def validation_records(cfg: Config, workdir: pathlib.Path) -> list[Record]:
    """The sample of data.validation_records that is looked at; [] without any."""
    spec = cfg.data.validation_records
    if not spec:
        return []
    known = read_records(records_path(spec, workdir, field="data.validation_records"))
    return choose_questions(known, cfg.eval.validation_questions, seed=cfg.seed)
