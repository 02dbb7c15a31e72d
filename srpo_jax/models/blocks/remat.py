"""What a layer keeps for the backward pass, by name: `model.remat`.

none       everything that its backward pass reads: the fastest, the most memory
dots       results of products with weights; attention, norms and activations are computed again
attention  its input and the attention's result (and log-sum-exp): all but attention again
offload    only its input, and that in the host's memory until it is needed: all again
full       only its input: all again

A policy changes memory and time, never what is computed.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from srpo_jax.errors import UserError
from srpo_jax.models.attention.checkpoint_name import ATTENTION

INPUT = "layer_input"
HOST = "pinned_host"
POLICIES = ("none", "full", "dots", "attention", "offload")


def layer_input(x: jax.Array) -> jax.Array:
    """x, under the name by which "offload" knows it. Each layer's first act."""
    return checkpoint_name(x, INPUT)


def with_remat(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module `layer`, to be scanned, under one of POLICIES."""
    if policy not in POLICIES:
        raise ValueError(f"remat must be one of {', '.join(POLICIES)}, not {policy!r}")
    if policy == "none":
        return layer
    kept = jax.checkpoint_policies
    saveable = {
        "full": None,
        "dots": kept.dots_with_no_batch_dims_saveable,
        "attention": kept.save_only_these_names(ATTENTION),
        "offload": kept.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst=HOST,
        ),
    }
    # The scan already keeps the compiler from merging the two computations.
    return nn.remat(layer, policy=saveable[policy], prevent_cse=False)


def check_host_memory(policy: str, mesh: Mesh) -> None:
    """UserError if `policy` keeps arrays in a kind of host memory that the devices do not have.

    TPUs, GPUs and CPUs have it in jax 0.10 and 0.12 (a CPU's is the same memory: nothing is won).
    """
    if policy != "offload":
        return
    device = mesh.devices.flat[0]
    if HOST not in [memory.kind for memory in device.addressable_memories()]:
        raise UserError(
            f"model.remat=offload needs {HOST} memory, which jax does not offer on "
            f"{device.platform} devices; use model.remat=full"
        )
