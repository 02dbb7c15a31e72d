"""Train a policy on the reasoning trees of a workdir: reads from top to bottom.

    trees -> batches -> step -> step -> ... -> checkpoint, verified

Running the same command again goes on where it stopped, with the parameters that an uninterrupted
run would have, bit for bit: batch k is a function of k, and the state is the checkpoint's.
"""

from __future__ import annotations

import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from data_pipelines.examples import Examples
from data_pipelines.loader import Batches, make_loader
from data_pipelines.tree_records import fingerprint, read_shards
from srpo_jax import sharding
from srpo_jax.attention import Attend
from srpo_jax.checkpoint import Checkpoints
from srpo_jax.errors import UserError
from srpo_jax.flops import Work, model_flops
from srpo_jax.hf.load import load_params, policy_digest
from srpo_jax.hf.processing import Processor
from srpo_jax.lora import Lora, init_adapters, make_lora
from srpo_jax.mesh import make_mesh, row_shards
from srpo_jax.metrics import Metrics
from srpo_jax.models.config import ModelConfig
from srpo_jax.models.families import load_model_config
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.objective import Objective, needs_reference_policy
from srpo_jax.optim import Optimizer, make_optimizer
from srpo_jax.profiling import Profile
from srpo_jax.run_identity import check_same, fingerprint_of_trees, identity, write_config
from srpo_jax.state import TrainState, abstract_state, init_state, state_shardings
from srpo_jax.step import make_train_step
from srpo_jax.tally import Tally


def train(
    cfg: Any,
    workdir: str | os.PathLike,
    *,
    examples: Examples | None = None,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains to cfg.train.steps and returns a summary: step, started_at, loss, seconds, checkpoint.

    Trees come from cfg.data.trees (default WORKDIR/trees), or `examples`. Without branches, or with
    objective.lambda_exp 0, this is SFT on the reference paths. When it returns, the last checkpoint
    is on disk and was read back. profile: these steps, counted from the start of this call, are
    traced into WORKDIR/profile, see profiling.py.
    Errors: UserError for settings that do not fit together, a workdir of another run, or a loss
    that is no number. SIGTERM and the first Ctrl-C finish the step, save, and raise SystemExit(0)
    or KeyboardInterrupt.
    """
    workdir = pathlib.Path(workdir)
    # The policy: what it is, and where its arrays will lie.
    config = load_model_config(cfg.model.path)
    mesh = make_mesh(**cfg.mesh)
    _check_rows(cfg, row_shards(mesh))
    model = PolicyModel(
        config,
        dtype=jnp.dtype(cfg.model.dtype),
        remat=cfg.model.remat,
        constrain=sharding.make_constrain(mesh),
        attend=Attend(cfg.model.attention, mesh),
    )
    lora = make_lora(cfg, config)
    abstract = abstract_params(config, _weights_dtype(cfg, lora))
    trained = abstract if lora is None else jax.eval_shape(lambda: init_adapters(lora))
    optimizer = make_optimizer(cfg.train, trained)
    objective = make_objective(cfg.objective)
    by_reference = needs_reference_policy(objective)
    shape = abstract_state(abstract, optimizer, with_reference=by_reference, lora=lora)
    places = state_shardings(shape, mesh, lora)

    # The data: batch k of this process, for every k.
    model_digest = policy_digest(cfg.model.path)
    examples, trees = find_examples(cfg, workdir, examples, model_digest)
    batches = make_batches(cfg, examples)
    run = identity(cfg, model_digest=model_digest, data_fingerprint=trees)

    first = jax.process_index() == 0
    workdir.mkdir(parents=True, exist_ok=True)
    with Checkpoints(workdir / "checkpoints", keep=cfg.train.keep) as checkpoints:
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, places
        )
        state, notes = first_state(cfg, config, checkpoints, target, optimizer, run, lora)
        start = saved = int(state.step)
        if first:
            write_config(cfg, run, workdir)
            print(_headline(cfg, shape, optimizer, mesh, batches, start, lora), flush=True)

        step = make_train_step(
            model, objective, optimizer, mesh, places, accumulate=cfg.train.accumulate, lora=lora
        )
        adapters = None if lora is None else trained
        flops = flops_of_work(config, abstract, optimizer, adapters, by_reference)
        tally = Tally(cfg, batches, notes, flops=flops, devices=list(mesh.devices.flat))
        log = Metrics(
            workdir, steps=cfg.train.steps, start=start, report_to=cfg.train.report_to
        ) if first else nullcontext()  # fmt: skip
        loader = make_loader(batches, start_step=start, num_steps=cfg.train.steps)
        tracer = Profile(profile, workdir / "profile", start, cfg.train.steps - start)
        pending = None  # metrics of the step before: read while the device works on this one
        with log as writer, closing(loader), StopRequest() as stop, tracer:
            for k, batch, waited in _timed(loader):
                with tracer.step(k - start, pending):
                    state, metrics = step(state, put_batch(batch, mesh))
                tracer.after(k - start, metrics)
                if pending:
                    tally.report(*pending, saved, writer)
                pending = (k + 1, metrics, waited)
                leaving = stop.asked(k + 1)
                if leaving or (k + 1) % cfg.train.save_every == 0 or k + 1 == cfg.train.steps:
                    tally.report(*pending, saved, writer)  # what is no number is never saved
                    pending = None
                    saved = checkpoints.save(state, run, tally.notes)
                if leaving:
                    break
        del state  # makes room: the checkpoint is read back into the same places
        if saved > start:
            checkpoints.verify(saved, target)
    if stop.signal is not None:
        _leave(stop.signal, saved, cfg.train.steps)
    return {
        "step": saved,
        "started_at": start,
        "loss": tally.loss,
        "seconds": round(tally.seconds(), 1),
        "checkpoint": str(checkpoints.directory / str(saved)),
    }


def find_examples(
    cfg: Any, workdir: pathlib.Path, examples: Examples | None, model_digest: str
) -> tuple[Examples, str]:
    """(the trees to train on, a fingerprint of their contents)."""
    if examples is not None:
        return examples, fingerprint_of_trees(examples)
    folder = pathlib.Path(cfg.data.trees or workdir / "trees")
    source = read_shards(folder)
    sampled_by = source[0]["provenance"]["policy_digest"]
    if sampled_by != model_digest:
        print(f"note: the branches of {folder} were sampled by another policy ({sampled_by}) than "
              f"{cfg.model.path}: this run is off-policy", flush=True)
    examples = Examples(
        source,
        Processor.from_dir(cfg.model.path),
        scope=cfg.arbiter.scope,
        require_effective=cfg.arbiter.require_effective,
    )
    return examples, fingerprint(folder)


def first_state(
    cfg: Any,
    config: ModelConfig,
    checkpoints: Checkpoints,
    target: TrainState,
    optimizer: Optimizer,
    run: dict[str, Any],
    lora: Lora | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """(state, notes): of the newest checkpoint that verifies, else from the policy's weights.

    Errors: UserError when the checkpoints are of another run, or past the end of this one.
    """
    place = checkpoints.directory
    state, notes = checkpoints.restore(target, lambda stored: check_same(stored, run, place))
    if state is not None and int(state.step) > cfg.train.steps:
        raise UserError(f"{place} is at step {int(state.step)}, past train.steps={cfg.train.steps}")
    with_base = target.base is not None
    if state is not None and not with_base:
        return state, notes
    places = jax.tree.map(lambda x: x.sharding, target)
    params = load_params(
        cfg.model.path,
        config,
        dtype=_weights_dtype(cfg, lora),
        shardings=places.base if with_base else places.params,
    )
    if state is not None:
        return state._replace(base=params), notes
    return init_state(params, optimizer, places, with_reference=with_base, lora=lora), notes


def _weights_dtype(cfg: Any, lora: Lora | None) -> jnp.dtype:
    """Of the policy's weights in memory: what is trained is float32, a frozen base may be less."""
    return jnp.dtype(jnp.float32 if lora is None else cfg.lora.base_dtype)


def make_objective(section: Any) -> Objective:
    """The loss's own switches out of the config's `objective` section."""
    names = ("lambda_exp", "contrast", "normalise", "beta", "gamma", "ref_coef")
    return Objective(**{name: section[name] for name in names})


def make_batches(cfg: Any, examples: Examples) -> Batches:
    """This process's rows of batch k, for every k."""
    names = (
        "pairing", "max_pairs", "branch_points", "reference", "odds_from", "ref_reduction",
    )  # fmt: skip
    return Batches(
        examples,
        rows_per_batch=cfg.pack.rows,
        row_tokens=cfg.pack.row_tokens,
        seed=cfg.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **{name: cfg.objective[name] for name in names},
    )


def flops_of_work(
    config: ModelConfig, base: Any, optimizer: Optimizer, adapters: Any, by_reference: bool
) -> Callable[[Work], float]:
    """The model's FLOPs of a step, by what its batch holds; what is frozen costs no gradient.

    base: the policy's (abstract) parameters; adapters: those of LoRA, or None.
    """
    def flops(work: Work) -> float:
        return model_flops(
            config, base, work,
            trainable=optimizer.trainable, adapters=adapters, reference=by_reference,
        ).total  # fmt: skip

    return flops


def put_batch(batch: dict[str, Any], mesh: Any) -> dict[str, jax.Array]:
    """This process's rows as arrays of the global batch, rows over data and fsdp."""
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(place, rows) for name, rows in batch.items()
    }


class StopRequest:
    """In a `with`: SIGTERM and the first SIGINT are noted, the second SIGINT interrupts at once.

    With several processes jax's own service takes SIGTERM and makes all stop at the same step.
    """

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        print(f"{signal.Signals(number).name}: finishing this step, then saving", flush=True)

    def asked(self, step: int) -> bool:
        """Whether to stop after this step. To be called at every step by every process."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None


def _leave(number: int, step: int, steps: int) -> None:
    if jax.process_index() == 0:
        name = signal.Signals(number).name
        print(
            f"stopped by {name} after step {step}/{steps}; its checkpoint is saved and verified, "
            "run the same command again to go on",
            flush=True,
        )
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(0)


def _timed(loader: Iterator) -> Iterator[tuple[int, dict, float]]:
    """(k, batch, seconds that were waited for it)."""
    while True:
        begin = time.monotonic()
        found = next(loader, None)
        if found is None:
            return
        yield (*found, time.monotonic() - begin)


def _check_rows(cfg: Any, shards: int) -> None:
    if cfg.pack.rows % (cfg.train.accumulate * shards):
        raise UserError(
            f"pack.rows={cfg.pack.rows} does not divide into train.accumulate="
            f"{cfg.train.accumulate} slices over the {shards} row shards of the mesh (data x fsdp)"
        )


def _headline(cfg, state: TrainState, optimizer, mesh, batches, start: int, lora) -> str:
    sizes = {path: math.prod(x.shape) for path, x in sharding.by_path(state.params).items()}
    trained, total = sum(sizes[path] for path in optimizer.trainable), sum(sizes.values())
    kind = ""
    if lora is not None:
        total += sum(math.prod(x.shape) for x in jax.tree.leaves(state.base))
        kind = f" (LoRA of rank {lora.rank} on {len(lora.sites)} kinds of kernel)"
    few = f"{trained / 1e6:.2f}M" if trained > 9999 else f"{trained}"
    shape = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return (
        f"train: {few} of {total / 1e6:.2f}M parameters{kind}, {shape}, "
        f"{len(batches.used)} questions, {cfg.pack.rows} rows of {batches.budgets.tokens} tokens, "
        + (f"from step {start} to {cfg.train.steps}" if start else f"{cfg.train.steps} steps")
    )
