"""The mesh that a policy is sampled on, which is not the one that it is trained on.

A decode step reads every weight for a few tokens. Weights split over fsdp would be gathered for
every token (14 GB a token for a 7B), so here they stay where they are: whole on each device where
they leave room for the caches, else with heads, ffn and vocabulary split over `tensor`, at most as
many ways as there are key/value heads. All other devices are `data`: more questions at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from srpo_jax.config.fields import Config
from srpo_jax.distributed.accelerators import bound_rows, device_memory
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.distributed.mesh import AXES, Mesh, abstract_mesh, make_mesh
from srpo_jax.distributed.sharding import bytes_per_device, param_shardings
from srpo_jax.errors import UserError
from srpo_jax.models.attention.xla import own_length
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.text_config import TextConfig
from srpo_jax.models.policy_model import abstract_params

Sizes = tuple[int, int, int]  # of data, fsdp and tensor
USABLE = 0.92  # of the memory: the rest is the program, and holes between arrays
CPU_SLOTS = 64  # branches at once, where more do not make a step cheaper
GIB = 2**30


def sampling_sizes(weights: Mapping[int, int], devices: int, memory: int | None) -> Sizes:
    """How `devices` devices are shared out, a function of its arguments alone.

    weights: bytes of the policy on one device for each tensor size that it can be split by, see
    split_weights. memory: bytes of one device; None (unknown): the weights are not split.
    Takes the smallest tensor with which the weights fill at most half of the memory, or, where
    there is none, the largest that fits at all. Errors: UserError when none does.
    """
    best, largest = min(weights), max(weights)
    if memory is not None:
        roomy = [tensor for tensor in sorted(weights) if fits_well(weights[tensor], memory)]
        best = roomy[0] if roomy else largest
        if weights[best] > USABLE * memory:
            raise UserError(
                f"the policy takes {weights[best] / GIB:.1f} GiB a device when it is split "
                f"{best} ways, and a device has {memory / GIB:.1f} GiB: use devices with more "
                "memory, or more of them (it is split over a divisor of its key/value heads)"
            )
    return devices // best, 1, best


def fits_well(weights: int, memory: int) -> bool:
    """Whether weights leave half of a device's memory to the caches."""
    return 2 * weights <= memory


def split_weights(config: ModelConfig, dtype: str, devices: int) -> dict[int, int]:
    """{tensor: bytes of the policy on one device} for every size of the axis `tensor` that divides
    the key/value heads, the devices and every large parameter."""
    params = abstract_params(config, jnp.dtype(dtype))
    found = {}
    for tensor in range(1, math.gcd(config.text.num_kv_heads, devices) + 1):
        if math.gcd(config.text.num_kv_heads, devices) % tensor:
            continue
        try:
            shardings = param_shardings(params, abstract_mesh((1, 1, tensor)))
        except UserError:  # of an axis that this does not divide
            continue
        found[tensor] = bytes_per_device(params, shardings)
    return found


def asked_sizes(text: str, devices: int, kv_heads: int) -> Sizes:
    """The sizes that explore.mesh=`text` asks for: axes that it leaves out are 1, data takes what
    is left. Errors: UserError when it does not cover the devices, or cannot split the heads."""
    parts = [part.split("=") for part in text.split(",")]
    sizes = {axis: int(size) for axis, size in parts}
    if len(sizes) < len(parts):
        raise UserError(f"explore.mesh={text}: an axis is named twice")
    inner = sizes.get("fsdp", 1), sizes.get("tensor", 1)
    data = sizes.get("data", max(devices // math.prod(inner), 1))
    if data * math.prod(inner) != devices:
        raise UserError(
            f"explore.mesh={text} does not cover {devices} device(s) exactly; leave data out and "
            "it takes all that the others leave, or use auto"
        )
    if kv_heads % inner[1]:
        raise UserError(
            f"explore.mesh={text}: the policy has {kv_heads} key/value heads, and tensor must "
            "divide them"
        )
    return data, *inner


def sampling_mesh(cfg: Config, config: ModelConfig, *, alone: bool = False) -> Mesh | None:
    """The mesh for a policy: of this process's devices if it works `alone`, else of all; None when
    that is one device. Errors: UserError, see sampling_sizes and asked_sizes.
    """
    devices = jax.local_devices() if alone else jax.devices()
    text = cfg.explore.mesh
    if text != "auto":
        sizes = asked_sizes(text, len(devices), config.text.num_kv_heads)
    else:
        weights = split_weights(config, cfg.model.dtype, len(devices))
        memory = memory_here(agreed=not alone)
        sizes = sampling_sizes(weights, len(devices), memory)
    if len(devices) == 1:
        return None
    return make_mesh(*sizes, devices=devices)


def works_alone(cfg: Config, config: ModelConfig) -> bool:
    """Whether this process explores on its own devices, beside others that do the same, and not
    on one mesh with them: as explore.together says, or because the policy fits.
    """
    if cfg.explore.together != "auto":
        return cfg.explore.together == "no"
    here = len(jax.local_devices())
    if cfg.explore.mesh != "auto":
        try:
            asked_sizes(cfg.explore.mesh, here, config.text.num_kv_heads)
        except UserError:
            return False
        return True
    memory = memory_here()
    weights = split_weights(config, cfg.model.dtype, here).values()
    return memory is None or any(fits_well(size, memory) for size in weights)


def memory_here(*, agreed: bool = False) -> int | None:
    """Bytes of one device of this process, None if unknown; agreed: as process 0 has it."""
    memory = device_memory(jax.local_devices()[0])
    return as_first_says(lambda: memory) if agreed else memory


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the memory of a sampler depends on: tokens of prompt and path that a row has room for,
    branches of a row that decode at once, new tokens of each, and patches of a question."""

    tokens: int
    slots: int
    new_tokens: int
    patches: int


def cache_bytes(text: TextConfig, *, tensor: int, itemsize: int) -> int:
    """Bytes on one device of a token's keys and values. itemsize: of the compute dtype."""
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * itemsize // tensor


def bytes_per_row(text: TextConfig, shape: Shape, *, tensor: int, itemsize: int) -> int:
    """Bytes on one device of a row's keys and values, shared and of each slot, and of the slots'
    float32 logits, of which drawing keeps three copies.

    With the weights and fixed_bytes this is the compiler's peak to a few percent
    (tests/plan/sampling).
    """
    tokens = shape.tokens + shape.slots * own_length(shape.new_tokens)
    logits = 3 * shape.slots * text.padded_vocab * 4 // tensor
    return tokens * cache_bytes(text, tensor=tensor, itemsize=itemsize) + logits


def fixed_bytes(config: ModelConfig, shape: Shape, *, tensor: int, itemsize: int) -> int:
    """Bytes on one device, beside the weights, that do not grow with the rows: what the prefill of
    one question computes on the way (a layer's activations of the decoder and of the tower), and
    the kernels that a TPU's compiler may hold a second time, in another order: q, k and v, and the
    tower's MLP.
    """
    text, vision = config.text, config.vision
    heads = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    layer = 4 * text.hidden_size
    layer += (heads + text.num_heads * text.head_dim + 3 * text.intermediate_size) // tensor
    block = 4 * vision.hidden_size
    block += (4 * vision.hidden_size + 3 * vision.intermediate_size) // tensor
    turned = text.num_layers * text.hidden_size * heads
    turned += 3 * vision.depth * vision.hidden_size * vision.intermediate_size
    return (shape.tokens * layer + shape.patches * block + turned // tensor) * itemsize


def rows_that_fit(
    per_row: int, slots: int, *, weights: int, memory: int | None, bound: int, replicas: int
) -> int:
    """Rows over all replicas: as many as the memory holds beside the weights, but no more slots
    than keep a decode step bound by reading the weights (`bound` for each replica).

    per_row, weights (and whatever else does not grow with the rows), memory: bytes on one device;
    None: unknown. Errors: UserError when not even
    one row fits.
    """
    rows = max(bound // slots, 1)
    if memory is not None:
        rows = min(rows, int(USABLE * memory - weights) // per_row)
        if rows < 1:
            raise UserError(
                f"a question with {slots} branches at once takes {per_row / GIB:.1f} GiB a device, "
                f"the policy {weights / GIB:.1f} GiB, and there are {memory / GIB:.1f} GiB: sample "
                "fewer branches or tokens, or split the policy further (explore.mesh)"
            )
    return rows * replicas


def slots_that_pay() -> int:
    """How many branches a replica decodes for the price of one, about: see bound_rows."""
    return bound_rows(jax.local_devices()[0].device_kind) or CPU_SLOTS


def describe(mesh: Mesh | None) -> str:
    """As explore.mesh is written: "data=2,tensor=4"."""
    sizes: Sequence[int] = (1, 1, 1) if mesh is None else tuple(mesh.shape[axis] for axis in AXES)
    named = [f"{axis}={size}" for axis, size in zip(AXES, sizes) if size > 1 or axis == "data"]
    return ",".join(named)
