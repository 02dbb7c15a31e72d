"""What a training run is made of, before anything is computed or written: `srpo train` goes on from
here, and `srpo train --dry_run` stops here.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.tree_store import fingerprint, read_shards
from srpo_jax.distributed import sharding
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import row_shards, rows_here
from srpo_jax.errors import UserError
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.attention.self_check import self_check
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.flops import Work, model_flops
from srpo_jax.models.hf.load import policy_digest
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.pack.batches import Batches
from srpo_jax.pack.examples import Examples
from srpo_jax.runs.identity import fingerprint_of_trees, identity
from srpo_jax.train.lora import Lora, init_adapters, make_lora
from srpo_jax.train.losses.objective import Objective, needs_reference_policy
from srpo_jax.train.optimizer import Optimizer, make_optimizer
from srpo_jax.train.train_state import TrainState, abstract_state, state_shardings


class Setup(NamedTuple):
    """A run, ready to begin."""

    config: ModelConfig
    mesh: Mesh
    model: PolicyModel
    objective: Objective
    optimizer: Optimizer
    lora: Lora | None
    abstract: Any  # the policy's parameters, shapes and dtypes
    trained: Any  # those of them, or of the adapters, that are trained: the same
    target: TrainState  # the state as ShapeDtypeStructs with their shardings
    shardings: TrainState  # the same shardings alone
    batches: Batches
    run: dict[str, Any]  # what decides its parameters, see runs/identity.py

    def flops(self, work: Work) -> float:
        """Of the model, for a step whose batch holds this work."""
        return model_flops(
            self.config,
            self.abstract,
            work,
            trainable=self.optimizer.trainable,
            adapters=None if self.lora is None else self.trained,
            reference=needs_reference_policy(self.objective),
        ).total


def make_setup(
    cfg: Config | ConfigDict, workdir: pathlib.Path, examples: Examples | None = None
) -> Setup:
    """Reads the model's config, the trees and their pictures' sizes; makes no array.

    examples: instead of the trees of cfg.data.trees (default WORKDIR/trees).
    Errors: UserError for settings that do not fit together, or data that cannot be used.
    """
    cfg = as_config(cfg)
    # The policy: what it is, and where its arrays will lie.
    config = load_model_config(cfg.model.path, cfg.model.family)
    mesh = make_mesh(**arguments(make_mesh, cfg.mesh))
    _check_rows(cfg, row_shards(mesh))
    model = PolicyModel(
        config,
        dtype=jnp.dtype(cfg.model.dtype),
        remat=cfg.model.remat,
        constrain=sharding.make_constrain(mesh),
        attend=Attend(cfg.model.attention, mesh),
    )
    lora = make_lora(cfg.lora, cfg.seed, config)
    abstract = abstract_params(config, weights_dtype(cfg, lora))
    trained = abstract if lora is None else jax.eval_shape(lambda: init_adapters(lora))
    optimizer = make_optimizer(cfg.train, trained)
    objective = Objective(**arguments(Objective, cfg.objective))
    by_reference = needs_reference_policy(objective)
    dtype = jnp.dtype(cfg.train.param_dtype)
    shape = abstract_state(abstract, optimizer, with_reference=by_reference, lora=lora, dtype=dtype)
    shardings = state_shardings(shape, mesh, lora)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shape,
        shardings,
    )
    # The data: batch k of this process, for every k.
    digest = policy_digest(cfg.model.path)
    examples, trees, asked = find_examples(cfg, workdir, examples, digest, config.family)
    batches = make_batches(cfg, examples, mesh)
    run = identity(cfg, model_digest=digest, data_fingerprint=trees, prompt_digest=asked)
    return Setup(
        config,
        mesh,
        model,
        objective,
        optimizer,
        lora,
        abstract,
        trained,
        target,
        shardings,
        batches,
        run,
    )


def find_examples(
    cfg: Config,
    workdir: pathlib.Path,
    examples: Examples | None,
    model_digest: str,
    family: Family,
) -> tuple[Examples, str, str]:
    """(the trees to train on, a fingerprint of their contents, a digest of how they are asked; ""
    for given examples, whose fingerprint has it)."""
    if examples is not None:
        return examples, fingerprint_of_trees(examples), ""
    folder = pathlib.Path(cfg.data.trees or workdir / "trees")
    source = read_shards(folder)
    sampled_by = source[0]["provenance"]["policy_digest"]
    if sampled_by != model_digest and jax.process_index() == 0:
        print(
            f"note: the branches of {folder} were sampled by another policy ({sampled_by}) than "
            f"{cfg.model.path}: this run is off-policy",
            flush=True,
        )
    asking = load_asking(cfg, cfg.model.path, family, bare=cfg.prompt.train == "bare")
    check_asked_alike(asking, source[0]["provenance"], cfg.prompt.train, folder)
    encoder = asking.encoder
    settings = arguments(Examples, cfg.arbiter)
    examples = Examples(source, encoder.processor, prompt=encoder.prompt, **settings)
    return examples, fingerprint(folder), asking.digest


def check_asked_alike(
    asking: Asking, made: Mapping[str, Any], train: str, folder: pathlib.Path
) -> None:
    """UserError if trees were explored with another tokenizer or chat template than training has,
    or, with train="same", with another prompt. made: their provenance; older ones do not say.
    """
    name, ours, what = "prompt_digest", asking.digest, "prompt, chat template or tokenizer"
    if train == "bare":
        name, ours, what = "processor", asking.about["processor"], "chat template or tokenizer"
    theirs = {**made.get("prompt", {}), **made}.get(name, ours)
    if theirs != ours:
        raise UserError(
            f"{folder}: explored with another {what} ({theirs}) than this run has ({ours}); "
            "train with the model and the settings prompt.* and format.* of srpo explore"
        )


def check_attention(setup: Setup) -> None:
    """Errors: UserError when a kernel that the run would use computes something wrong here."""
    text, vision, model = setup.config.text, setup.config.vision, setup.model
    groups = text.num_heads // text.num_kv_heads
    self_check(model.attend.impl, groups, text.head_dim, vision.head_dim, model.dtype)


def weights_dtype(cfg: Config, lora: Lora | None) -> jnp.dtype:
    """That the policy's weights are read in: what is trained in float32, which a master copy keeps
    if parameters do not; a frozen base in less."""
    return jnp.dtype(jnp.float32 if lora is None else cfg.lora.base_dtype)


def make_batches(cfg: Config, examples: Examples, mesh: Mesh) -> Batches:
    """The rows of batch k that lie on this process's devices, for every k."""
    return Batches(
        examples,
        rows_per_batch=cfg.pack.rows,
        row_tokens=cfg.pack.row_tokens,
        seed=cfg.seed,
        rows_here=rows_here(mesh, cfg.pack.rows),
        **arguments(Batches, cfg.objective),
    )


def _check_rows(cfg: Config, shards: int) -> None:
    if cfg.pack.rows % (cfg.train.accumulate * shards):
        raise UserError(
            f"pack.rows={cfg.pack.rows} does not divide into train.accumulate="
            f"{cfg.train.accumulate} slices over the {shards} row shards of the mesh (data x fsdp)"
        )


def headline(cfg: Config, setup: Setup, start: int) -> str:
    """One line: what is trained, on what, how long."""
    trained, total = counts(setup)
    kind = ""
    if setup.lora is not None:
        lora = setup.lora
        kind = f" (LoRA of rank {lora.rank} on {len(lora.sites)} kinds of kernel)"
    few = f"{trained / 1e6:.2f}M" if trained > 9999 else f"{trained}"
    shape = " ".join(f"{axis}={size}" for axis, size in setup.mesh.shape.items())
    batches = setup.batches
    return (
        f"train: {few} of {total / 1e6:.2f}M parameters{kind}, {shape}, "
        f"{len(batches.used)} questions, {cfg.pack.rows} rows of {batches.budgets.tokens} tokens, "
        + (f"from step {start} to {cfg.train.steps}" if start else f"{cfg.train.steps} steps")
    )


def counts(setup: Setup) -> tuple[int, int]:
    """(parameters that are trained, all parameters): adapters count to both."""
    sizes = {p: math.prod(x.shape) for p, x in by_path(setup.target.params).items()}
    total = sum(sizes.values())
    if setup.lora is not None:
        total += sum(math.prod(x.shape) for x in jax.tree.leaves(setup.target.base))
    return sum(sizes[path] for path in setup.optimizer.trainable), total
