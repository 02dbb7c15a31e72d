"""Where every array lives: parameters, activations, the rows of a batch, the embedding table.

Parameters follow ONE table, RULES, from the path of a parameter to mesh axes.

The model files know nothing of meshes. `fsdp` goes on the axis of size D (or E, the vision width),
`tensor` on heads, ffn and vocabulary, so that a block's matmuls contract over an unsplit axis and
one all-reduce per block remains. The embedding table is split over its vocabulary by both axes.
Biases and norm scales are under 1 MB at 7B and stay whole.

Most data movement is left to the compiler. Two hooks of the model, `lookup` and `by_rows`, are
not: what it makes of a lookup in a split table can be an all-reduce of the embeddings of the whole
global batch on every device (seen on v5e:4x4: 1.07 GB for 16 rows of a 3B). `make_lookup` gathers
the table, in the compute dtype, over fsdp once, whatever the batch is; over tensor each device
looks up its own part of the vocabulary, and the results are added.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.param_paths import path_name
from srpo_jax.models.policy_model import plain_lookup

AnyMesh = Mesh | AbstractMesh  # the second has no devices: for planning
ROW_AXES = ("data", "fsdp")  # the mesh axes that rows of a batch are split over
SMALL_BYTES = 1 << 20  # a parameter below this may stay whole where an axis does not divide it


class ShardingRule(NamedTuple):
    """Paths that fully match `pattern` are laid out by `spec`. Optional: may match nothing."""

    pattern: str
    spec: P
    optional: bool = False


RULES: tuple[ShardingRule, ...] = (
    ShardingRule(r"embed/embedding", P(("tensor", "fsdp"), None)),
    ShardingRule(r"lm_head/kernel", P("fsdp", "tensor"), optional=True),  # absent when tied
    ShardingRule(r"layers/(attn|mlp)_norm/scale", P()),
    ShardingRule(r"layers/attn/[qkv]/kernel", P(None, "fsdp", "tensor", None)),
    ShardingRule(r"layers/attn/[qkv]/bias", P(), optional=True),  # Qwen2 only
    ShardingRule(r"layers/attn/[qk]_norm/scale", P(), optional=True),  # Qwen3 only
    ShardingRule(r"layers/attn/o/kernel", P(None, "tensor", None, "fsdp")),
    ShardingRule(r"layers/mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    ShardingRule(r"layers/mlp/down/kernel", P(None, "tensor", "fsdp")),
    ShardingRule(r"norm/scale", P()),
    ShardingRule(r"vision/patch_embed/kernel", P(None, "fsdp")),
    ShardingRule(r"vision/patch_embed/bias", P(), optional=True),
    ShardingRule(r"vision/(class_token|image_newline)/embedding", P(), optional=True),
    ShardingRule(r"vision/position/embedding", P(None, "fsdp"), optional=True),
    ShardingRule(r"vision/(pre_norm|post_norm)/(scale|bias)", P(), optional=True),
    ShardingRule(r"vision/blocks/(norm[12]|scale[12])/(scale|bias)", P()),
    ShardingRule(
        r"vision/blocks/attn/qkv/kernel", P(None, "fsdp", None, "tensor", None), optional=True
    ),
    ShardingRule(
        r"vision/blocks/attn/[qkv]/kernel", P(None, "fsdp", "tensor", None), optional=True
    ),
    ShardingRule(r"vision/blocks/attn/proj/kernel", P(None, "tensor", None, "fsdp")),
    ShardingRule(r"vision/blocks/mlp/(gate|up|fc1)/kernel", P(None, "fsdp", "tensor")),
    ShardingRule(r"vision/blocks/mlp/(down|fc2)/kernel", P(None, "tensor", "fsdp")),
    ShardingRule(r"vision/blocks/(attn/(qkv|[qkv]|proj)|mlp/(gate|up|down|fc1|fc2))/bias", P()),
    ShardingRule(r"vision/(merger|projector)/norm/(scale|bias)", P(), optional=True),
    ShardingRule(r"vision/(merger|projector)/fc1/kernel", P("fsdp", "tensor")),
    ShardingRule(r"vision/(merger|projector)/fc2/kernel", P("tensor", "fsdp"), optional=True),
    ShardingRule(r"vision/(merger|projector)/fc[12]/bias", P(), optional=True),
    ShardingRule(r"vision/deepstack/norm/(scale|bias)", P(), optional=True),
    ShardingRule(r"vision/deepstack/fc1/kernel", P(None, "fsdp", "tensor"), optional=True),
    ShardingRule(r"vision/deepstack/fc2/kernel", P(None, "tensor", "fsdp"), optional=True),
    ShardingRule(r"vision/deepstack/fc[12]/bias", P(), optional=True),
)

# What `constrain` asks of an activation of each kind; see models/ for where it is called.
ACTIVATIONS = {
    "activation": P(ROW_AXES, None, None),
    "heads": P(ROW_AXES, None, "tensor", None),
    "ffn": P(ROW_AXES, None, "tensor"),
    "vision": P(ROW_AXES, None, None),
}


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec: None, an axis or several."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _split(entry: Any, mesh: AnyMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes_of(entry))


def _fitting_spec(name: str, leaf: Any, spec: P, mesh: AnyMesh) -> P:
    """`spec` without the axes that do not divide; UserError if that leaves a large one whole."""
    fitted = []
    for i, entry in enumerate(tuple(spec)):
        if leaf.shape[i] % _split(entry, mesh) == 0:
            fitted.append(entry)
            continue
        if math.prod(leaf.shape) * leaf.dtype.itemsize >= SMALL_BYTES:
            raise UserError(
                f"parameter {name} of shape {tuple(leaf.shape)}: axis {i} of size {leaf.shape[i]} "
                f"does not divide over mesh {'*'.join(axes_of(entry))}={_split(entry, mesh)}; "
                "choose another mesh"
            )
        fitted.append(None)
    return P(*fitted)


def param_shardings(params: Any, mesh: AnyMesh, rules: tuple[ShardingRule, ...] = RULES) -> Any:
    """Tree of NamedSharding for a tree of (abstract) parameters, by `rules`.

    Errors: ValueError for a path with no rule or two, and for a rule that matches no path;
    UserError for a parameter of 1 MB or more with an axis that the mesh does not divide.
    """
    used: set[str] = set()

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        hits = [rule for rule in rules if re.fullmatch(rule.pattern, name)]
        if len(hits) != 1:
            found = [rule.pattern for rule in hits] or "no rule"
            raise ValueError(f"parameter {name} must match one sharding rule, got {found}")
        used.add(hits[0].pattern)
        return NamedSharding(mesh, _fitting_spec(name, leaf, hits[0].spec, mesh))

    shardings = jax.tree_util.tree_map_with_path(sharding_of, params)
    unused = [rule.pattern for rule in rules if rule.pattern not in used and not rule.optional]
    if unused:
        raise ValueError(f"sharding rules that match no parameter: {unused}")
    return shardings


def bytes_per_device(tree: Any, shardings: Any = None) -> int:
    """Bytes of a tree of (abstract) arrays on the device that holds the most of them (all hold the
    same but for arrays that stay whole). shardings: where they lie; default: each array's own.
    """
    if shardings is None:
        shardings = jax.tree.map(lambda x: x.sharding, tree)
    parts = jax.tree.map(
        lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(parts))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The sharding of an array that lies whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: its first axis, the rows, over data and fsdp."""
    return NamedSharding(mesh, P(ROW_AXES))


def make_constrain(mesh: Mesh) -> Callable[[jax.Array, str], jax.Array]:
    """The model's `constrain` hook: pins an activation of a kind of ACTIVATIONS to the mesh.

    An axis that the mesh does not divide (few heads, one row) is left to the compiler.
    """

    def constrain(x: jax.Array, kind: str) -> jax.Array:
        entries = tuple(ACTIVATIONS[kind])
        fitted = [e if n % _split(e, mesh) == 0 else None for e, n in zip(entries, x.shape)]
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*fitted)))

    return constrain


def row_shards(mesh: AnyMesh | None) -> int:
    """Into how many parts the rows of a batch are split; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROW_AXES)


def rows_here(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Which rows of a global batch of `rows` lie on this process's devices, in ascending order.

    Not always a p-th part: where `tensor` goes over processes they hold the same rows, and on a
    TPU a host's chips are neighbours in the torus, not in the order of the mesh.
    """
    rows_sharding = batch_sharding(mesh)
    held: set[int] = set()
    for index in rows_sharding.addressable_devices_indices_map((rows,)).values():
        assert index  # every device has a part
        (part,) = index
        held.update(range(*part.indices(rows)))
    return tuple(sorted(held))


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows, in ascending order, as arrays of the global batch: rows over data and
    fsdp. Each device gets the rows that the mesh gives it, whichever process it belongs to.
    """
    rows_sharding, shards = batch_sharding(mesh), row_shards(mesh)
    rows = len(next(iter(batch.values()))) * shards // len(rows_here(mesh, shards))
    at = {row: i for i, row in enumerate(rows_here(mesh, rows))}

    def put(local: Any) -> jax.Array:
        def part(index: Any) -> Any:
            begin, end, _ = index[0].indices(rows)
            return local[at[begin] : at[begin] + end - begin]

        return jax.make_array_from_callback((rows, *local.shape[1:]), rows_sharding, part)

    return {name: put(local) for name, local in batch.items()}


def put_same(tree: Any, sharding: NamedSharding) -> Any:
    """A tree of numpy arrays, the same on every process, as global arrays laid out by `sharding`,
    of which each process puts its own part."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree
    )


def fetch(tree: Any) -> Any:
    """A tree of arrays as numpy arrays, whole, on every process; all of them call it."""

    def whole(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    if all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return jax.tree.map(whole, tree)


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
        if mesh.size == 1 or tokens.shape[0] % row_shards(mesh):
            return plain_lookup(table, tokens, dtype)
        with jax.named_scope("lookup"):
            return split(table.astype(dtype), jnp.clip(tokens, 0, table.shape[0] - 1))

    return lookup


def make_by_rows(mesh: Mesh) -> Callable[..., jax.Array]:
    """The model's `by_rows` hook: function(*arrays), all of whose first axes are rows, on each
    device with its own rows. The compiler gathers the global batch for a take_along_axis.
    """

    def by_rows(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        if mesh.size == 1 or arrays[0].shape[0] % row_shards(mesh):
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
