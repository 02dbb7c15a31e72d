"""The training state: what a step reads and replaces, where it lives, how it starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from srpo_jax import sharding
from srpo_jax.optim import Optimizer, select


class TrainState(NamedTuple):
    """Arrays only. `reference` is the frozen policy that DPO and IPO compare with, else None."""

    step: jax.Array  # int32 [], number of updates done
    params: Any  # nested dict, see models/
    opt_state: Any  # optax state over {path: array}
    reference: Any = None  # like params


def _initial(params: Any, optimizer: Optimizer, reference: Any) -> TrainState:
    opt_state = optimizer.transform.init(select(params, optimizer.trainable))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, reference)


def abstract_state(params: Any, optimizer: Optimizer, *, with_reference: bool) -> TrainState:
    """The state as shapes and dtypes, from (abstract) parameters. Allocates nothing."""
    return jax.eval_shape(
        lambda p: _initial(p, optimizer, p if with_reference else None), params
    )


def state_shardings(abstract: TrainState, mesh: Mesh) -> TrainState:
    """A NamedSharding for every array of the state: moments lie like their parameter."""
    params = sharding.param_shardings(abstract.params, mesh)
    placed = sharding.by_path(params)
    whole = sharding.replicated(mesh)

    def place(path: tuple[Any, ...], _: Any) -> Any:
        # optax keeps its moments in dicts with our keys, so the last key names the parameter.
        return placed.get(getattr(path[-1], "key", None), whole)

    opt_state = jax.tree_util.tree_map_with_path(place, abstract.opt_state)
    reference = None if abstract.reference is None else params
    return TrainState(whole, params, opt_state, reference)


def init_state(
    params: Any, optimizer: Optimizer, shardings: TrainState, *, with_reference: bool
) -> TrainState:
    """The state at step 0. Copies `params` (twice with a reference), so a donated step never
    invalidates the caller's arrays; the moments are made in their shards.
    """

    def make(p: Any) -> TrainState:
        copy = jax.tree.map(jnp.copy, p)
        return _initial(copy, optimizer, jax.tree.map(jnp.copy, p) if with_reference else None)

    return jax.jit(make, out_shardings=shardings)(params)
