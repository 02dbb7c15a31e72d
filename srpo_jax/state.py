"""The training state: what a step reads and replaces, where it lives, how it starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from srpo_jax import sharding
from srpo_jax.lora import Lora, adapter_shardings, init_adapters
from srpo_jax.optim import Optimizer, select


class TrainState(NamedTuple):
    """Arrays only. `base` is the policy before training: what DPO and IPO compare with and what
    adapters are added to. None where nothing needs it.
    """

    step: jax.Array  # int32 [], number of updates done
    params: Any  # nested dict: the policy, see models/, or the adapters on `base`, see lora.py
    opt_state: Any  # optax state over {path: array}
    base: Any = None  # nested dict, see models/


def _initial(params: Any, optimizer: Optimizer, base: Any) -> TrainState:
    opt_state = optimizer.transform.init(select(params, optimizer.trainable))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, base)


def abstract_state(
    params: Any, optimizer: Optimizer, *, with_reference: bool, lora: Lora | None = None
) -> TrainState:
    """The state as shapes and dtypes, from the policy's parameters or their shapes."""

    def make(p: Any) -> TrainState:
        if lora is not None:
            return _initial(init_adapters(lora), optimizer, p)
        return _initial(p, optimizer, p if with_reference else None)

    return jax.eval_shape(make, params)


def state_shardings(abstract: TrainState, mesh: Mesh, lora: Lora | None = None) -> TrainState:
    """A NamedSharding for every array of the state: moments lie like their parameter."""
    params = base = sharding.param_shardings(
        abstract.params if lora is None else abstract.base, mesh
    )
    if lora is not None:
        params = adapter_shardings(lora, base)
    placed = sharding.by_path(params)
    whole = sharding.replicated(mesh)

    def place(path: tuple[Any, ...], _: Any) -> Any:
        # optax keeps its moments in dicts with our keys, so the last key names the parameter.
        return placed.get(getattr(path[-1], "key", None), whole)

    opt_state = jax.tree_util.tree_map_with_path(place, abstract.opt_state)
    return TrainState(whole, params, opt_state, None if abstract.base is None else base)


def init_state(
    params: Any,
    optimizer: Optimizer,
    shardings: TrainState,
    *,
    with_reference: bool,
    lora: Lora | None = None,
) -> TrainState:
    """The state at step 0. Copies `params` (twice with a reference), so a donated step never
    invalidates the caller's arrays; the moments are made in their shards. With adapters the
    policy's `params` are taken as they are, and a donated step uses them up.
    """
    if lora is not None:
        fresh = jax.jit(
            lambda: _initial(init_adapters(lora), optimizer, None),
            out_shardings=shardings._replace(base=None),
        )
        return fresh()._replace(base=params)

    def make(p: Any) -> TrainState:
        copy = jax.tree.map(jnp.copy, p)
        return _initial(copy, optimizer, jax.tree.map(jnp.copy, p) if with_reference else None)

    return jax.jit(make, out_shardings=shardings)(params)
