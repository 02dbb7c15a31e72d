"""One update of the policy: forward, loss, backward, optimizer, as one compiled, donated function.

The loss is a SUM over the rows of the batch (the batch already carries weights divided by the
global batch's questions). So slices of rows can be computed one after the other and added up, and
rows can lie on any device, without changing the result beyond the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.distributed import sharding
from srpo_jax.distributed.sharding import ROW_AXES, gather, make_by_rows, make_lookup
from srpo_jax.models.blocks.decoder import check_host_memory
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from srpo_jax.train.lora import Lora, dropout_key, variables
from srpo_jax.train.losses.objective import (
    Objective,
    finish_metrics,
    needs_reference_policy,
    srpo_loss,
)
from srpo_jax.train.losses.target_logps import target_logps
from srpo_jax.train.optimizer import Optimizer, merge, select
from srpo_jax.train.train_state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

MODEL_INPUTS = ("tokens", "positions", "subtree_end", "image_index", "patches")
OWN_NAMES = {"loss_ref": "srpo/loss_ref", "loss_exp": "srpo/loss_exp"}  # not TRL's


def make_target_logp(model: PolicyModel, mesh: Mesh, shardings: Any) -> Callable[..., jax.Array]:
    """(params, batch, adapters=None) -> log p of every target token given its path, float32 [B, N].

    shardings: of the params. adapters: as `lora.variables` gives them. The loss runs under
    shard_map: each device gathers its columns of the head over fsdp once, before the loop over
    chunks, and its gradient is summed once, after it. Left to the compiler, both would
    happen in every chunk.
    """
    head_spec = _head_spec(shardings)
    lookup = make_lookup(mesh, shardings["embed"]["embedding"].spec)
    model = model.clone(lookup=lookup, by_rows=make_by_rows(mesh))
    width, vocab = (sharding.axes_of(entry) for entry in (*head_spec, None, None)[:2])
    split = {axis: i for i, axes in enumerate((width, vocab)) for axis in axes if axis == "fsdp"}
    split_vocab = "tensor" in vocab
    rows = P(ROW_AXES)
    names = (*MODEL_INPUTS, *(field.name for field in model.config.vision.fields))
    text = model.config.text
    valid = text.vocab_size if text.padded_vocab > text.vocab_size else None

    @jax.named_scope("head")
    def local(hidden: jax.Array, head: jax.Array, batch: Batch) -> jax.Array:
        with jax.named_scope("gather_head"):
            head = gather(head, split)
        axis = "tensor" if split_vocab else None
        return target_logps(hidden, head, batch, valid_vocab=valid, vocab_axis=axis)

    def target_logp(params: Any, batch: Batch, adapters: Any = None) -> jax.Array:
        weights = {"params": params} if adapters is None else {"params": params, "lora": adapters}
        hidden: Any = model.apply(weights, {name: batch[name] for name in names})
        head = head_matrix(params, model.config).astype(hidden.dtype)
        targets = {name: batch[name] for name in ("tokens", "target_pos", "target_parent")}
        return jax.shard_map(local, mesh=mesh, in_specs=(rows, head_spec, rows), out_specs=rows)(
            hidden, head, targets
        )

    return target_logp


def make_train_step(
    model: PolicyModel,
    objective: Objective,
    optimizer: Optimizer,
    mesh: Mesh,
    shardings: TrainState,
    *,
    accumulate: int = 1,
    lora: Lora | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step: (state, batch) -> (state, metrics). The state given is donated.

    shardings: of the state, see train_state.state_shardings; a batch's rows go over data and fsdp.
    accumulate: how many slices of rows are computed one after the other; it must divide the rows,
    and what it leaves must divide over the mesh's row axes.
    lora: state.params are these adapters, on state.base.
    metrics: float32 scalars under TRL's names, see `objective.srpo_loss`, and grad_norm (before
    clipping, trainable parameters only) and learning_rate.
    Gradients have the dtype of the parameters; slices are added up in float32.
    Errors: UserError for a remat policy that the devices cannot follow.
    """
    check_host_memory(model.remat, mesh)
    policy = shardings.params if lora is None else shardings.base
    target_logp = make_target_logp(model, mesh, policy)
    by_reference = needs_reference_policy(objective)
    trained_shardings = select(shardings.params, optimizer.trainable)

    def loss_of(trainable: dict[str, Any], state: TrainState, batch: Batch, part: Any):
        base = state.base
        frozen_logp = jax.lax.stop_gradient(target_logp(base, batch)) if by_reference else None
        params = merge(state.params, trainable)
        if lora is None:
            logp = target_logp(params, batch)
        else:
            adapters = variables(lora, params, dropout_key(lora, state.step, part))
            logp = target_logp(base, batch, adapters)
        return srpo_loss(logp, batch, objective, frozen_logp)

    def gradients(
        state: TrainState, batch: Batch, part: Any
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        trainable = select(state.params, optimizer.trainable)
        grads, sums = jax.grad(loss_of, has_aux=True)(trainable, state, batch, part)
        # Asks for reduce-scatter to where the parameter lies, not for whole gradients.
        return sums, jax.lax.with_sharding_constraint(grads, trained_shardings)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sums, grads = add_slices(
            lambda rows, part: gradients(state, rows, part), batch, accumulate, mesh
        )
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        trainable = select(state.params, optimizer.trainable)
        with jax.named_scope("optimizer"):
            weights = trainable if state.master is None else state.master
            updates, opt_state = optimizer.transform.update(grads, state.opt_state, weights)
            weights = optax.apply_updates(weights, updates)
            rounded = jax.tree.map(lambda w, p: w.astype(p.dtype), weights, trainable)
            params = merge(state.params, rounded)
        metrics = {
            **{OWN_NAMES.get(name, name): value for name, value in finish_metrics(sums).items()},
            "grad_norm": optax.global_norm(grads),
            "learning_rate": optimizer.schedule(state.step),
        }
        master = None if state.master is None else weights
        return TrainState(state.step + 1, params, opt_state, state.base, master), metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def add_slices(of_rows: Callable[[Batch, Any], Any], batch: Batch, count: int, mesh: Mesh) -> Any:
    """The sum of of_rows(slice of the batch's rows, its number), in float32, over `count` slices
    that are computed one after the other; one slice is of_rows(batch, 0) as it is.
    """
    if count == 1:
        return of_rows(batch, 0)
    slices = jax.tree.map(lambda x: _slices(x, count, mesh), batch)

    def add(total: Any, numbered: tuple[jax.Array, Batch]):
        part, rows = numbered
        return jax.tree.map(jnp.add, total, of_rows(rows, part)), None

    first = jax.tree.map(lambda x: x[0], slices)
    shapes = jax.eval_shape(of_rows, first, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(count), slices))[0]


def _head_spec(shardings: Any) -> P:
    """How head_matrix(params) lies: the head's own spec, or the transposed embedding's."""
    if "lm_head" in shardings:
        return shardings["lm_head"]["kernel"].spec
    vocab, width = (*shardings["embed"]["embedding"].spec, None, None)[:2]
    return P(width, vocab)


def _slices(x: jax.Array, count: int, mesh: Mesh) -> jax.Array:
    """[B, ...] -> [count, B/count, ...]; slice i takes every count-th row from i on, so that each
    device finds its part of every slice among its own rows.
    """
    x = jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, ROW_AXES)))
