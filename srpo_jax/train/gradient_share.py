"""How much of a first step's gradient comes of each of the two terms of the loss.

Before a run it says whether lambda_exp is a number at all: at a share of L_exp near 0 the run is
SFT, near 1 it has no reference path. One compiled program gives both norms, one backward pass each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.distributed import sharding
from srpo_jax.distributed.sharding import put_batch
from srpo_jax.models.hf.load import load_params
from srpo_jax.train.lora import init_adapters, variables
from srpo_jax.train.losses.objective import needs_reference_policy, srpo_loss
from srpo_jax.train.optimizer import merge, select
from srpo_jax.train.setup import Setup, weights_dtype
from srpo_jax.train.train_step import add_slices, make_target_logp


class GradientNorms(NamedTuple):
    """Global norms over the trained parameters, of ref_coef * L_ref and of lambda_exp * L_exp."""

    ref: float
    exp: float

    @property
    def exp_share(self) -> float | None:
        """|g_exp| / (|g_ref| + |g_exp|), None where both are 0."""
        total = self.ref + self.exp
        return self.exp / total if total > 0 else None


def gradient_norms(
    cfg: Config, setup: Setup, params: Any = None, *, step: int = 0
) -> GradientNorms:
    """The norms on batch `step` of the setup's trees, at the policy's weights.

    params: the policy's, in any dtype and place (used up); default: read from cfg.model.path. With
    LoRA fresh adapters are on them, whose B is 0, so that only the gradients of B count. Dropout is
    left out. Slices of train.accumulate, the mesh and the dtypes are those of training, which needs
    the optimizer's memory besides.
    """
    cfg = as_config(cfg)
    weights, base = _weights(cfg, setup, params)
    batch = put_batch(setup.batches[step], setup.mesh)
    norm = _make_norm(cfg, setup)
    return GradientNorms(*(float(norm(weights, base, batch, term)) for term in (0.0, 1.0)))


def _weights(cfg: Config, setup: Setup, params: Any) -> tuple[Any, Any]:
    """(the trained tree, the frozen policy below adapters or None), each where training has it."""
    places = setup.shardings.params if setup.lora is None else setup.shardings.base
    dtype = jnp.dtype(cfg.train.param_dtype)
    if setup.lora is not None:
        dtype = weights_dtype(cfg, setup.lora)
    if params is None:
        params = load_params(
            local_folder(cfg.model.path), setup.config, dtype=dtype, shardings=places
        )
    else:
        params = jax.tree.map(
            lambda leaf, place: jax.device_put(leaf.astype(dtype), place), params, places
        )
    if setup.lora is None:
        return params, None
    lora = setup.lora
    make = jax.jit(lambda: init_adapters(lora), out_shardings=setup.shardings.params)
    return make(), params


def _make_norm(cfg: Config, setup: Setup) -> Callable[..., jax.Array]:
    """Jitted: (trained tree, base, batch, term) -> the norm of the gradient of L_ref (term 0) or
    L_exp (term 1), with their weights. The policy of a contrast that compares with one is the
    policy itself, as it is in a first step.
    """
    lora, mesh, paths = setup.lora, setup.mesh, setup.optimizer.trainable
    placed = setup.shardings.params if lora is None else setup.shardings.base
    target_logp = make_target_logp(setup.model, mesh, placed)
    kept = select(setup.shardings.params, paths)
    by_reference = needs_reference_policy(setup.objective)
    terms = (
        dataclasses.replace(setup.objective, lambda_exp=0.0),
        dataclasses.replace(setup.objective, ref_coef=0.0),
    )

    def logps(trainable: Any, params: Any, base: Any, batch: Any) -> jax.Array:
        own = merge(params, trainable)
        if lora is None:
            return target_logp(own, batch)
        return target_logp(base, batch, variables(lora, own))

    def gradients(params: Any, base: Any, batch: Any, term: jax.Array) -> Any:
        logp, back = jax.vjp(
            lambda trainable: logps(trainable, params, base, batch), select(params, paths)
        )
        frozen = jax.lax.stop_gradient(logp) if by_reference else None
        of_ref, of_exp = (
            jax.grad(lambda x, one=one: srpo_loss(x, batch, one, frozen)[0])(logp) for one in terms
        )
        (grads,) = back(jnp.where(term == 0, of_ref, of_exp))
        return jax.lax.with_sharding_constraint(grads, kept)

    def norm(params: Any, base: Any, batch: Any, term: jax.Array) -> jax.Array:
        grads = add_slices(
            lambda rows, _: gradients(params, base, rows, term), batch, cfg.train.accumulate, mesh
        )
        return optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))

    return jax.jit(norm, out_shardings=sharding.replicated(mesh))
