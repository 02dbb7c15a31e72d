"""What a training run is made of, before anything is computed or written: `srpo train` goes on from
here, and `srpo train --dry_run` stops here.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.sidecars.labels import SAFE, LabelRules, Labels
from srpo_jax.data_pipelines.sources import trees_path
from srpo_jax.data_pipelines.tree_store import (
    SUFFIX,
    TreeSource,
    fingerprint,
    read_shards,
    verify_shards,
)
from srpo_jax.data_pipelines.verdict_store import (
    JudgedTrees,
    Verdicts,
    branch_label,
    find_folder,
)
from srpo_jax.distributed import sharding
from srpo_jax.distributed.agreement import computed_once
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import row_shards, rows_here
from srpo_jax.errors import UserError
from srpo_jax.files import read_json
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.attention.self_check import self_check
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.flops import Work, model_flops
from srpo_jax.models.hf.weights_digest import policy_digest, spot_digest
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.pack.batches import Batches
from srpo_jax.pack.examples import Examples
from srpo_jax.pack.prompts import Prompts
from srpo_jax.pack.shard_tables import Process, ShardTables
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
    verdicts: Verdicts | None  # None: of an objective that needs none
    labels: dict[str, Any] | None  # counts of all branches, see label_counts
    run: dict[str, Any]  # what decides its parameters, see runs/identity.py

    def facts(self) -> dict[str, Any]:
        """What the run is trained on, for its config.json, the report and the model card:
        {"questions", "questions_with_pair", "pairs", "labels": see label_counts, "verdicts":
        {"set", "arbiter", "digest", "spec"} or None}.
        """
        judge = None
        if self.verdicts is not None:
            told = {name: self.verdicts.judge[name] for name in ("arbiter", "digest", "spec")}
            judge = {"set": self.verdicts.name, **told}
        return {
            "questions": len(self.batches.used),
            "questions_with_pair": self.batches.with_pair,
            "pairs": self.batches.pairs,
            "labels": self.labels,
            "verdicts": judge,
        }

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
    cfg: Config | ConfigDict,
    workdir: pathlib.Path,
    examples: Examples | None = None,
    *,
    verify: bool = False,
    keep: bool = True,
) -> Setup:
    """Reads the model's config and what is kept beside the trees; makes no array.

    examples: instead of the trees of cfg.data.trees (default WORKDIR/trees). verify: those are
    read in full first, and damage is named. keep: whether what a later start needs is written
    beside them.
    Errors: UserError for settings that do not fit together, or data that cannot be used.
    """
    cfg = as_config(cfg)
    # The policy: what it is, and where its arrays will lie.
    config = load_model_config(local_folder(cfg.model.path), cfg.model.family)
    mesh = make_mesh(**arguments(make_mesh, cfg.mesh))
    _check_rows(cfg, mesh)
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
    weights = local_folder(cfg.model.path)
    digest = computed_once(
        lambda: policy_digest(weights), lambda: spot_digest(weights), f"the policy in {weights}"
    )
    if examples is None:
        trees = find_examples(cfg, workdir, digest, config.family, verify=verify, keep=keep)
    else:
        trees = Trees(examples, {"trees": fingerprint_of_trees(examples)})
    batches = make_batches(cfg, trees.examples, mesh)
    check_pairs(cfg, batches)
    run = identity(cfg, model_digest=digest, data=trees.identity, prompt_digest=trees.prompt_digest)
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
        trees.verdicts,
        label_counts(cfg, trees.verdicts, trees.identity["trees"]),
        run,
    )


class Trees(NamedTuple):
    """The trees to train on, and what names them: {name: value} for the run's identity.
    prompt_digest: of how they are asked; "" for given examples, whose fingerprint has it.
    """

    examples: Examples
    identity: dict[str, Any]
    verdicts: Verdicts | None = None
    prompt_digest: str = ""


def find_examples(
    cfg: Config,
    workdir: pathlib.Path,
    model_digest: str,
    family: Family,
    *,
    verify: bool = False,
    keep: bool = True,
) -> Trees:
    """The trees of cfg.data.trees (default WORKDIR/trees) with the verdicts that cfg names. verify:
    every byte of them is read and checked, not only sizes and times. keep: see make_setup.

    Errors: UserError when an objective that compares branches finds no whole set of verdicts.
    """
    folder = trees_path(cfg.data.trees, workdir)
    source = read_shards(folder)
    if not len(source):
        raise UserError(f"{folder}: its shards hold no tree; run `srpo explore` on some records")
    first = jax.process_index() == 0
    if verify:
        verify_shards(source, jax.process_index(), jax.process_count())
    made = source[0]["provenance"]
    sampled_by = made["policy_digest"]
    if sampled_by != model_digest and first:
        print(
            f"note: the branches of {folder} were sampled by another policy ({sampled_by}) than "
            f"{cfg.model.path}: this run is off-policy",
            flush=True,
        )
    asking = load_asking(cfg, local_folder(cfg.model.path), family, bare=cfg.prompt.train == "bare")
    check_asked_alike(asking, made, cfg.prompt.train, folder)
    identity = {"trees": fingerprint(folder)}
    labels = None
    if needs_verdicts(cfg):
        stems = [path.name.removesuffix(SUFFIX) for path, _ in source.shards]
        place = find_folder(folder, cfg.arbiter.verdicts)
        labels = Labels(place, stems, anew=verify, keep=keep)
        if labels.missing:
            raise UserError(
                f"{labels.folder} has no verdicts on {len(labels.missing)} of {len(stems)} shards "
                f"of {folder} ({labels.missing[0]}): run `srpo judge` again"
            )
        identity["verdicts"] = labels.fingerprint
    rules = arguments(branch_label, cfg.arbiter)
    prompts = Prompts(asking.encoder)
    tables = ShardTables(
        source,
        prompts,
        asking.outlines,
        labels,
        LabelRules(**rules, keep_irregular=cfg.explore.keep_irregular),
        Process(jax.process_index(), jax.process_count()),
        keep,
    )
    kept = None
    if labels is not None and cfg.arbiter.filter_references:
        kept = _safe_references(tables, labels)
    joined: TreeSource | JudgedTrees = source
    if labels is not None:
        irregular = cfg.explore.keep_irregular
        joined = JudgedTrees(source, labels, keep_irregular=irregular, keep=kept, complete=True)
    examples = Examples(
        joined, asking.encoder.processor, prompts=prompts, tables=tables, numbers=kept, **rules
    )
    return Trees(examples, identity, labels, asking.digest)


def needs_verdicts(cfg: Config) -> bool:
    """Whether the objective compares or teaches branches, or reference paths are left out."""
    objective = cfg.objective
    return bool(objective.lambda_exp or objective.branch_coef or cfg.arbiter.filter_references)


def label_counts(cfg: Config, verdicts: Verdicts | None, trees: str) -> dict[str, Any] | None:
    """{"branches", "safe", "unsafe", "error", "unfinished", "references": {"safe", "unsafe",
    "error"}} by the summary of the verdict set; None without one, or when it counts other trees
    (trees: their fingerprint) or by other rules than this run.
    """
    try:
        found = {} if verdicts is None else read_json(verdicts.folder / "summary.json")
    except (OSError, UserError):  # judged by a process that was stopped before it wrote one
        return None
    rules = {"trees": trees, **arguments(branch_label, cfg.arbiter)}
    if not found or any(found.get(name, rule) != rule for name, rule in rules.items()):
        return None
    return {
        name: found[name]
        for name in ("branches", "safe", "unsafe", "error", "unfinished", "references")
    }


def _safe_references(tables: ShardTables, labels: Labels) -> list[int]:
    """The numbers of the trees whose reference path is judged safe."""
    found = tables.references()
    keep = np.flatnonzero(found == SAFE)
    if not len(keep):
        raise UserError(
            f"arbiter.filter_references: {labels.folder} has no safe reference path among "
            f"{len(found)}"
        )
    if jax.process_index() == 0:
        print(f"left out, reference path not judged safe: {len(found) - len(keep)} questions")
    return keep.tolist()


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
    """The rows of batch k that lie on this process's devices, for every k. What the objective gives
    no weight is not laid out: no branches at lambda_exp 0, no reference path at ref_coef 0.
    """
    objective = cfg.objective
    switches = arguments(Batches, objective)
    if objective.ref_coef == 0:
        switches["reference"] = "none"
    return Batches(
        examples,
        rows_per_batch=cfg.pack.rows if not cfg.pack.questions else _row_multiple(cfg, mesh),
        questions=cfg.pack.questions,
        steps=cfg.train.steps,
        row_tokens=cfg.pack.row_tokens,
        seed=cfg.seed,
        rows_here=functools.partial(rows_here, mesh),
        compare=objective.lambda_exp != 0,
        drop_long=cfg.pack.too_long == "drop",
        **switches,
    )


def check_pairs(cfg: Config, batches: Batches) -> None:
    """Errors: UserError when the objective compares branches and there is nothing to compare."""
    if cfg.objective.lambda_exp != 0 and not batches.with_pair:
        raise UserError(
            f"none of {len(batches.examples)} questions has a pair of a safe and an unsafe branch, "
            f"so objective.lambda_exp={cfg.objective.lambda_exp:g} would train nothing: look at "
            "the table of `srpo judge`, sample more (`srpo explore --more`), or train the "
            "reference paths alone with --config.objective.lambda_exp=0"
        )


def _row_multiple(cfg: Config, mesh: Mesh) -> int:
    """Rows that slices of the batch and the mesh's row shards divide."""
    return cfg.train.accumulate * row_shards(mesh)


def _check_rows(cfg: Config, mesh: Mesh) -> None:
    if not cfg.pack.questions and cfg.pack.rows % _row_multiple(cfg, mesh):
        raise UserError(
            f"pack.rows={cfg.pack.rows} does not divide into train.accumulate="
            f"{cfg.train.accumulate} slices over the {row_shards(mesh)} row shards of the mesh "
            "(data x fsdp)"
        )


def headline(cfg: Config, setup: Setup, start: int) -> str:
    """Two or three lines: what is trained and how long, on which pairs, by whose labels."""
    trained, total = counts(setup)
    kind = ""
    if setup.lora is not None:
        lora = setup.lora
        kind = f" (LoRA of rank {lora.rank} on {len(lora.sites)} kinds of kernel)"
    few = f"{trained / 1e6:.2f}M" if trained > 9999 else f"{trained}"
    shape = " ".join(f"{axis}={size}" for axis, size in setup.mesh.shape.items())
    line = (
        f"train: {few} of {total / 1e6:.2f}M parameters{kind}, {shape}, "
        f"{_questions(cfg)}{setup.batches.rows_per_batch} rows of "
        f"{setup.batches.budgets.tokens} tokens, "
        + (f"from step {start} to {cfg.train.steps}" if start else f"{cfg.train.steps} steps")
    )
    return "\n".join([line, *_data_lines(cfg, setup)])


def _questions(cfg: Config) -> str:
    return f"{cfg.pack.questions} questions in " if cfg.pack.questions else ""


def _data_lines(cfg: Config, setup: Setup) -> list[str]:
    """Questions and pairs, whose verdicts they are by, and what these come to."""
    batches, labels = setup.batches, setup.labels
    questions = f"data: {len(batches.used)} questions"
    if cfg.objective.lambda_exp == 0:
        line = f"{questions}, nothing is compared (objective.lambda_exp=0)"
        if cfg.objective.branch_coef:
            line += f"; safe branches count {cfg.objective.branch_coef:g} times the reference path"
    else:
        line = f"{questions}, {batches.with_pair} with a pair, {batches.pairs} pairs in all"
    if setup.verdicts is not None:
        judge = setup.verdicts.judge
        line += f"; verdicts: {setup.verdicts.name}, by {judge['arbiter']} {judge['digest']}"
    if labels is None:
        return [line]
    share = {
        name: f"{100 * labels[name] / max(labels['branches'], 1):.1f} %"
        for name in ("safe", "unsafe", "error", "unfinished")
    }
    return [
        line,
        f"labels: of {labels['branches']} branches {share['safe']} safe, {share['unsafe']} unsafe, "
        f"{share['error']} ERROR ({share['unfinished']} unfinished); reference paths: "
        f"{labels['references']['unsafe']} unsafe",
    ]


def counts(setup: Setup) -> tuple[int, int]:
    """(parameters that are trained, all parameters): adapters count to both."""
    sizes = {p: math.prod(x.shape) for p, x in by_path(setup.target.params).items()}
    total = sum(sizes.values())
    if setup.lora is not None:
        total += sum(math.prod(x.shape) for x in jax.tree.leaves(setup.target.base))
    return sum(sizes[path] for path in setup.optimizer.trainable), total
