"""The training state: what a step reads and replaces, where it lives, how it starts."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.distributed import sharding
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.train.lora import Lora, adapter_shardings, init_adapters
from srpo_jax.train.optimizer import Optimizer, kept_axes, select


class TrainState(NamedTuple):
    """Arrays only. `base` is the policy before training: what DPO and IPO compare with and what
    adapters are added to. `master`: with parameters in bfloat16, the float32 values of the trained
    ones, which the optimizer moves and `params` are rounded from. None where nothing needs them.
    """

    step: jax.Array  # int32 [], number of updates done
    params: Any  # nested dict: the policy, see models/, or the adapters on `base`, see lora.py
    opt_state: Any  # optax state over {path: array}, float32
    base: Any = None  # nested dict, see models/
    master: Any = None  # {path: float32 array}


def _initial(params: Any, optimizer: Optimizer, base: Any) -> TrainState:
    opt_state = optimizer.transform.init(select(params, optimizer.trainable))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, base)


def _initial_policy(
    params: Any, optimizer: Optimizer, with_reference: bool, dtype: Any
) -> TrainState:
    """All weights of the policy in `dtype`; nothing of `params` is used as it is."""

    def copy() -> Any:
        return jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), params)

    state = _initial(params, optimizer, copy() if with_reference else None)
    narrow = jnp.dtype(dtype) != jnp.float32
    master = jax.tree.map(jnp.copy, select(params, optimizer.trainable)) if narrow else None
    return state._replace(params=copy(), master=master)


def abstract_state(
    params: Any,
    optimizer: Optimizer,
    *,
    with_reference: bool,
    lora: Lora | None = None,
    dtype: Any = jnp.float32,
) -> TrainState:
    """The state as shapes and dtypes, from the policy's parameters or their shapes.

    params: float32; with adapters in the dtype that they are kept in. dtype: of the policy's
    parameters in the state, without adapters.
    """

    def make(p: Any) -> TrainState:
        if lora is not None:
            return _initial(init_adapters(lora), optimizer, p)
        return _initial_policy(p, optimizer, with_reference, dtype)

    return jax.eval_shape(make, params)


def state_shardings(
    abstract: TrainState, mesh: sharding.AnyMesh, lora: Lora | None = None
) -> TrainState:
    """A NamedSharding for every array of the state: moments lie like their parameter, factored ones
    without the axis that they are a mean over."""
    params = base = sharding.param_shardings(
        abstract.params if lora is None else abstract.base, mesh
    )
    if lora is not None:
        params = adapter_shardings(lora, base)
    placed, shapes = by_path(params), by_path(abstract.params)
    whole: Any = sharding.replicated(mesh)

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> Any:
        # optax keeps its moments in dicts with our keys, so one of the keys names the parameter.
        name = next((key.key for key in path if getattr(key, "key", None) in placed), None)
        if name is None:
            return whole
        kind = [key.name for key in path if hasattr(key, "name")][-1]
        spec = (*placed[name].spec, *[None] * (shapes[name].ndim - len(placed[name].spec)))
        kept = kept_axes(kind, name, shapes[name].shape)
        return NamedSharding(mesh, P(*(spec[axis] for axis in kept)))

    opt_state = jax.tree_util.tree_map_with_path(sharding_of, abstract.opt_state)
    master = None if abstract.master is None else {name: placed[name] for name in abstract.master}
    return TrainState(whole, params, opt_state, None if abstract.base is None else base, master)


def init_state(
    params: Any,
    optimizer: Optimizer,
    shardings: TrainState,
    *,
    with_reference: bool,
    lora: Lora | None = None,
    dtype: Any = jnp.float32,
) -> TrainState:
    """The state at step 0, see abstract_state. Uses `params` up: their memory is the state's, as
    both together need not fit a device that just holds the state. A reference is a copy, made
    first. The moments are made in their shards.
    """
    if lora is not None:
        fresh = jax.jit(
            lambda: _initial(init_adapters(lora), optimizer, None),
            out_shardings=shardings._replace(base=None),
        )
        return fresh()._replace(base=params)

    make = initializer(optimizer, shardings, with_reference=with_reference, dtype=dtype)
    with warnings.catch_warnings():  # in bfloat16 the place of frozen float32 weights has no use
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        return make(params)


def initializer(
    optimizer: Optimizer, shardings: TrainState, *, with_reference: bool, dtype: Any
) -> Any:
    """The jitted function of the policy's parameters, which it uses up, that init_state calls."""

    def make(p: Any) -> TrainState:
        return _initial_policy(p, optimizer, with_reference, dtype)

    return jax.jit(
        make, in_shardings=(shardings.params,), out_shardings=shardings, donate_argnums=0
    )
