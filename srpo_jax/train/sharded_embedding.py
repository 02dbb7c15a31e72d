"""Token embeddings from a table split over the mesh: the hooks `lookup` and `by_rows` of models.

Left to the compiler, rows of a table split over its vocabulary can become an all-reduce of the
embeddings of the whole global batch on every device (seen on v5e:4x4: 1.07 GB for 16 rows of a 3B).
Here the table, in the compute dtype, is gathered over fsdp once, whatever the batch is; over tensor
each device looks up its own part of the vocabulary, and the results are added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from srpo_jax.distributed.mesh import ROW_AXES
from srpo_jax.distributed.sharding import axes_of
from srpo_jax.models.policy_model import plain_lookup


def make_lookup(mesh: Mesh, spec: P) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """(table [V, D] laid out by `spec`, tokens [B, T], dtype) -> embeddings [B, T, D] in dtype.

    Rows that the mesh does not divide, and a mesh of one device, take the model's plain lookup.
    """
    axes = axes_of(spec[0]) if spec else ()
    rows = P(ROW_AXES)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        table = gather(table, {"fsdp": 0} if "fsdp" in axes else {})
        if "tensor" not in axes:
            return take_rows(table, tokens)
        own = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        inside = (own >= 0) & (own < table.shape[0])
        found = take_rows(table, jnp.where(inside, own, 0))
        return jax.lax.psum(jnp.where(inside[..., None], found, 0), "tensor")

    split = jax.shard_map(local, mesh=mesh, in_specs=(spec, rows), out_specs=rows)

    def lookup(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
        if mesh.size == 1 or tokens.shape[0] % math.prod(mesh.shape[axis] for axis in ROW_AXES):
            return plain_lookup(table, tokens, dtype)
        with jax.named_scope("lookup"):
            return split(table.astype(dtype), jnp.clip(tokens, 0, table.shape[0] - 1))

    return lookup


def make_by_rows(mesh: Mesh) -> Callable[..., jax.Array]:
    """The model's `by_rows` hook: function(*arrays), all of whose first axes are rows, on each
    device with its own rows. The compiler gathers the global batch for a take_along_axis.
    """

    def by_rows(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        shards = math.prod(mesh.shape[axis] for axis in ROW_AXES)
        if mesh.size == 1 or arrays[0].shape[0] % shards:
            return function(*arrays)
        rows = P(ROW_AXES)
        return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)(*arrays)

    return by_rows


def gather(weight: jax.Array, split: Mapping[str, int]) -> jax.Array:
    """A weight inside shard_map, whole over the axes of the rows. split: {mesh axis: its axis}.

    What comes out counts as another one on every device: its gradient is scattered over fsdp and
    summed over replicas here, once, and not wherever it is used.
    """
    whole = tuple(axis for axis in ROW_AXES if axis not in split)
    weight = jax.lax.pcast(weight, whole, to="varying")
    for axis, dimension in split.items():
        weight = jax.lax.all_gather(weight, axis, axis=dimension, tiled=True)
    return weight


def take_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table[tokens]: [V, D], int32 [...] -> [..., D]. The gradient of a row of the table is summed
    in float32 over the tokens that read it, and rounded to the table's dtype once."""
    if table.dtype == jnp.float32:
        return jnp.take(table, tokens, axis=0, mode="clip")
    return _take_narrow(table.shape[0], table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_narrow(rows: int, table: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take(table, tokens, axis=0, mode="clip")


def _take_forward(rows, table, tokens):
    return _take_narrow(rows, table, tokens), tokens


def _take_backward(rows, tokens, grad):
    # Equal tokens are brought together and summed; then every row is written once.
    tokens, grad = tokens.reshape(-1), grad.reshape(-1, grad.shape[-1])
    order = jnp.argsort(tokens)
    tokens = tokens[order]
    slot = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), tokens[1:] != tokens[:-1]]))
    sums = jax.ops.segment_sum(
        grad[order].astype(jnp.float32), slot, len(tokens), indices_are_sorted=True
    )
    row_of = jnp.full(tokens.shape, rows).at[slot].set(tokens)  # `rows` is none: dropped
    table = jnp.zeros((rows, grad.shape[-1]), grad.dtype)
    return table.at[row_of].add(sums.astype(grad.dtype), mode="drop"), None


_take_narrow.defvjp(_take_forward, _take_backward)
