"""Where every array lives: ONE table from parameter path to mesh axes, and the specs of the rest.

The model files know nothing of meshes. `fsdp` goes on the axis of size D (or E, the vision width),
`tensor` on heads, ffn and vocabulary, so that a block's matmuls contract over an unsplit axis and
one all-reduce per block remains. The embedding table is split over its vocabulary by both axes.
Biases and norm scales are under 1 MB at 7B and stay whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.distributed.mesh import ROW_AXES
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.param_paths import path_name

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


def _split(entry: Any, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes_of(entry))


def _fitting_spec(name: str, leaf: Any, spec: P, mesh: Mesh) -> P:
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


def param_shardings(params: Any, mesh: Mesh, rules: tuple[ShardingRule, ...] = RULES) -> Any:
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


def replicated(mesh: Mesh) -> NamedSharding:
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
