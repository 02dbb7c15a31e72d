"""The weights of a state that trains, laid out for sampling; the state stays as it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from srpo_jax.config.fields import Config
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import param_shardings
from srpo_jax.inference.sampling_mesh import sampling_mesh
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.train.lora import merged_params
from srpo_jax.train.optimizer import merge
from srpo_jax.train.setup import Setup
from srpo_jax.train.train_state import TrainState


def sampling_weights(cfg: Config, setup: Setup, state: TrainState) -> Any:
    """The policy's parameters in config.model.dtype, on the mesh of explore.mesh: those that
    export.sampling_params reads of a checkpoint of this state. An array that lies so already is the
    state's own, so they are to be dropped before the next step, which uses the state up.
    """
    params = state.params if state.master is None else merge(state.params, state.master)
    if setup.lora is not None:
        params = merged_params(setup.lora, state.base, state.params, keep=True)
    dtype = jnp.dtype(cfg.model.dtype)
    mesh = sampling_mesh(cfg, setup.config) or make_mesh(devices=jax.local_devices()[:1])
    places = param_shardings(abstract_params(setup.config, dtype), mesh)
    return jax.tree.map(lambda x, place: jax.device_put(x.astype(dtype), place), params, places)
