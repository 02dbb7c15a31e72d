"""The loss on trees that are not trained on: every tree once, without gradients.

Trees come from data.validation_trees, with their verdicts, or are made of the reference paths of
data.validation_records: then there is L_ref alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.images import load_record_images
from srpo_jax.data_pipelines.path_formats.tokens import as_read_back, tokenize_reference
from srpo_jax.data_pipelines.records import Record
from srpo_jax.distributed import sharding
from srpo_jax.distributed.sharding import put_batch
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.models.hf.processor import Processor
from srpo_jax.pack.tree import Tree
from srpo_jax.train.lora import variables
from srpo_jax.train.losses.objective import (
    Objective,
    finish_metrics,
    needs_reference_policy,
    srpo_loss,
)
from srpo_jax.train.setup import Setup, find_examples, make_batches
from srpo_jax.train.train_state import TrainState
from srpo_jax.train.train_step import add_slices, make_target_logp

# What is told of the loss's metrics, and under which name; the others say the same as these.
OF_RECORDS = {"loss_ref": "loss_ref"}
OF_TREES = {
    **OF_RECORDS,
    "loss": "loss",
    "loss_exp": "loss_exp",
    "rewards/accuracies": "accuracies",
    "rewards/margins": "margins",
}


class ValidationLoss:
    """Called with a training state: {"loss_ref", ...} over all of the trees, see OF_TREES.

    records: of whose reference paths trees are made, where cfg.data.validation_trees is empty.
    Rows, slices and mesh are those of training, so what fits there fits here. keep: as of
    setup.make_setup. Errors: UserError as there, and RecordError for a record without a path.
    """

    def __init__(
        self,
        cfg: Config,
        setup: Setup,
        workdir: pathlib.Path,
        records: Iterable[Record] = (),
        *,
        keep: bool = True,
    ):
        objective, self._names = setup.objective, OF_TREES
        if cfg.data.validation_trees:
            data = dataclasses.replace(cfg.data, trees=cfg.data.validation_trees)
            cfg = dataclasses.replace(cfg, data=data)
            digest, family = setup.run["model weights"], setup.config.family
            examples = find_examples(cfg, workdir, digest, family, keep=keep).examples
        else:
            alone = {"lambda_exp": 0.0, "ref_coef": 1.0}
            objective, self._names = dataclasses.replace(objective, **alone), OF_RECORDS
            own = dataclasses.replace(cfg.objective, **alone, reference="dataset")
            cfg = dataclasses.replace(cfg, objective=own)
            examples: Any = _Trees(cfg, setup, records)
        self._batches = make_batches(cfg, examples, setup.mesh)
        if not self._batches.with_pair:  # what compares says nothing
            self._names = OF_RECORDS
        self._setup, self._run = setup, _make_sums(cfg, setup, objective)

    def __call__(self, state: TrainState) -> dict[str, float]:
        sums: dict[str, Any] = {}
        for batch in self._batches.whole_epoch():
            found = self._run(state.params, state.base, put_batch(batch, self._setup.mesh))
            for name, value in jax.device_get(found).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        values = finish_metrics(sums)
        return {told: float(values[name]) for name, told in self._names.items()}

    @property
    def names(self) -> list[str]:
        """Of what a call gives."""
        return list(self._names.values())


class _Trees(list):
    """Trees without branches, of records; see pack.examples.ReadyTrees."""

    def __init__(self, cfg: Config, setup: Setup, records: Iterable[Record]):
        bare = cfg.prompt.train == "bare"
        asking = load_asking(cfg, local_folder(cfg.model.path), setup.config.family, bare=bare)
        super().__init__(_tree(asking, record) for record in records)
        self.processor: Processor = asking.encoder.processor


def _tree(asking: Asking, record: Record) -> Tree:
    encoder = asking.encoder
    record = as_read_back(record, encoder.processor, asking.form)
    pieces = tokenize_reference(record, encoder.processor, asking.form, encoder.processor.opened)
    encoder = encoder.of_category(record.category)
    prompt = encoder.encode(record.question, load_record_images(record))
    return Tree(record.id, prompt, tuple(pieces), ())


def _make_sums(cfg: Config, setup: Setup, objective: Objective) -> Any:
    """Jitted: (trained tree, base, batch) -> the sums of srpo_loss, without dropout."""
    lora = setup.lora
    placed = setup.shardings.params if lora is None else setup.shardings.base
    target_logp = make_target_logp(setup.model, setup.mesh, placed)
    by_reference = needs_reference_policy(objective)

    def sums(params: Any, base: Any, batch: Any) -> Any:
        def of_rows(rows: Any, _: Any) -> Any:
            frozen = target_logp(base, rows) if by_reference else None
            if lora is None:
                logp = target_logp(params, rows)
            else:
                logp = target_logp(base, rows, variables(lora, params))
            return srpo_loss(logp, rows, objective, frozen)[1]

        return add_slices(of_rows, batch, cfg.train.accumulate, setup.mesh)

    return jax.jit(sums, out_shardings=sharding.replicated(setup.mesh))
