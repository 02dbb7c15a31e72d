"""From a model's arrays to the block implementations and back: meshes, layouts, padding.

A model has q [B, T, H, d] and k, v [B, T, K, d], split over a mesh: rows over the axes of the rows,
heads over "tensor". A block implementation (block_sparse.py, pallas_tpu.py, pallas_gpu.py) works on
one device, on q [B, K, G, T, d] and k, v [B, K, T, d] with T a multiple of its blocks; G = H / K
query heads read one kv head. No query needs keys of another row or of another head, so each device
computes its own part and nothing is communicated.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from srpo_jax.models.attention import block_list, block_sparse, pallas_gpu, pallas_tpu, tpu_sizes

# Scores of one step of the XLA loop, square. On CPU smaller ones compute fewer hidden scores and
# stay in the core's cache; on other platforms a step has a fixed cost of many kernel launches.
CPU_BLOCK, OTHER_BLOCK = 64, 512
# In rows that are one segment no block can be skipped, so larger ones cost nothing there.
CPU_ROW_BLOCK = 256
MOST_ROWS = 1 << block_list.ROW_BITS  # of one block list


def by_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ints: jax.Array,
    *,
    kind: str,
    impl: str,
    mesh: Mesh | None,
    device: jax.Device,
) -> jax.Array:
    """Attention by the block implementation `impl`, for q [B, T, H, d]; k, v [B, T, K, d].

    kind: "tree" (tree_attention; ints int32 [B, T] are subtree_end), "segment" or "row"
    (segment_attention and row_attention; ints are seg). Returns [B, T, H, d].
    """

    def local(*arrays):
        # A list has room for MOST_ROWS rows (the tiles of many pictures are more): in parts.
        if len(arrays[0]) <= MOST_ROWS:
            return _local(*arrays, kind=kind, impl=impl, device=device)
        parts = [x[:MOST_ROWS] for x in arrays], [x[MOST_ROWS:] for x in arrays]
        return jnp.concatenate([local(*part) for part in parts])

    if mesh is None:
        return local(q, k, v, ints)
    rows, heads, repeat = _layout(mesh, q.shape, k.shape[2])
    if repeat > 1:
        k, v = (jnp.repeat(x, repeat, axis=2) for x in (k, v))
    arrays = P(rows, None, heads, None)
    specs = (arrays, arrays, arrays, P(rows, None))
    # Nothing is communicated; the check of varying axes does not know the kernels.
    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=arrays, check_vma=False)
    return split(q, k, v, ints)


def _layout(mesh: Mesh, q_shape: tuple[int, ...], kv_heads: int):
    """(axes of the rows, axis of the heads, how often to repeat each kv head before the split).

    What the mesh does not divide stays whole on every device, as in sharding.make_constrain. With
    fewer kv heads than devices, each device needs one: repeating them gives it just that. On
    tensor=8, 32 heads over 4 kv heads: each kv head is repeated twice, and a device has 4 heads and
    1 kv head. 28 heads do not divide by 8 and stay whole.
    """
    batch, _, heads, _ = q_shape
    rows = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    if batch % math.prod(mesh.shape[axis] for axis in rows):
        rows = None
    tensor = mesh.shape["tensor"]
    repeat = tensor // math.gcd(kv_heads, tensor)
    if heads % tensor or heads % (kv_heads * repeat):
        return rows, None, 1
    return rows, "tensor", repeat


def _local(q, k, v, ints, kind, impl, device):
    """On one device; [B, T, H, d] in and out: transposes, pads to whole blocks, and back."""
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    if impl.startswith("pallas_gpu"):
        capability = getattr(device, "compute_capability", "8.0")  # in the interpreter: a CPU
        sizes = pallas_gpu.sizes_for(size, q.dtype, capability)
    else:
        sizes = _sizes(length, kind, impl, device)
    unit = math.lcm(sizes.q, sizes.kv)
    padded = -(-length // unit) * unit

    def lay_out(x):  # [B, T, n, d] -> [B, n, padded, d]
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    causal = kind == "tree"
    with jax.named_scope(f"{kind}_attention"):
        bounds = block_list.tree_bounds(ints) if causal else block_list.segment_bounds(ints)
        bounds = block_list.pad_bounds(bounds, padded)
        queries = lay_out(q).reshape(batch, kv_heads, heads // kv_heads, padded, size)
        arrays = (queries, lay_out(k), lay_out(v), bounds)
        if impl == "block":
            out: Any = block_sparse.attention(*arrays, sizes.q, causal)
        else:
            kernel: Any = pallas_gpu if impl.startswith("pallas_gpu") else pallas_tpu
            out = kernel.attention(*arrays, sizes, causal, impl.endswith("_interpret"))
        return out.reshape(batch, heads, padded, size)[:, :, :length].swapaxes(1, 2)


def _sizes(length: int, kind: str, impl: str, device: jax.Device) -> tpu_sizes.KernelSizes:
    if impl != "block":
        sizes_for = tpu_sizes.row_sizes_for if kind == "row" else tpu_sizes.sizes_for
        return sizes_for(device.device_kind, length)
    cpu = device.platform == "cpu"
    block = CPU_BLOCK if cpu else OTHER_BLOCK
    if kind == "row":  # equal blocks with little padding: 5 x 208 for 1025 tokens
        parts = -(-length // (CPU_ROW_BLOCK if cpu else OTHER_BLOCK))
        block = -(-length // (8 * parts)) * 8
    return tpu_sizes.KernelSizes(block, block)
