"""Checksums of arrays, computed where the arrays live: any mesh gives the same numbers.

The sum of an array's words times odd weights, modulo 2^32: integers add up to the same in any order
and in any split, and no array is gathered or sent to the host.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from srpo_jax.models.blocks.param_paths import by_path

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """uint32 sum of the array's words times odd weights that differ by position.

    An odd weight times a change of one bit is never 0 modulo 2^32, so every flipped bit shows; the
    positions make exchanged values show. No reshape, so no array is gathered to compute it.
    """
    words = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        position = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index + position * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    weight = index * jnp.uint32(0x9E3779B1) | jnp.uint32(1)
    return jnp.sum(words * weight, dtype=jnp.uint32)


def describe(tree: Any) -> dict[str, list]:
    """{path: [shape, dtype, checksum]} of the arrays of a tree.

    One small program per shape and sharding (moments share their parameter's). On an accelerator
    all are under way before the first result is waited for; on CPU each is waited for, because
    there the collectives of several programs can deadlock.
    """
    arrays = by_path(tree)
    one_by_one = jax.default_backend() == "cpu"
    sums = {}
    for path, x in arrays.items():
        sums[path] = _checksum(x)
        if one_by_one:
            sums[path].block_until_ready()
    sums = jax.device_get(sums)
    return {path: [list(x.shape), x.dtype.name, int(sums[path])] for path, x in arrays.items()}
