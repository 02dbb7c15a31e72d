"""Tree and segment attention as Pallas kernels for TPU, forward and backward.

block_sparse.py computes the same in the same order and explains the mathematics; read it first.

How the loop becomes a grid. A TPU runs the steps of a grid one after another and fetches the blocks
of the next step while it computes this one. The grid is (kv head, entry of the block list): step
(h, n) holds key block and query block of entry n, for kv head h and all G query heads that read it.
So k and v are fetched once and never repeated, and the mask is made once for G heads. Which blocks
these are is decided by the list, which lies in scalar memory before the grid starts ("prefetched
scalars"): the index maps in _Specs read it. Scratch memory outlives a step: it is set to its start
at the FIRST entry of a query block, added to at each, and written out at the LAST.

Scores are kept transposed, keys down and queries across: the softmax then reduces over sublanes,
every per-query number (maximum, sum, logsumexp) is a row, and no score block is ever transposed.

The backward pass is one kernel (5 matrix products a block, not the 7 of separate dq and dkv
kernels): with the list ordered by query block, dq is summed in a scratch block, while dk and dv,
whose key blocks come back again and again, stay in VMEM for the whole row, 8 d bytes per token.

Never run on a TPU: checked in interpret mode and compiled ahead of time (docs/performance.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from srpo_jax.models.attention import block_list
from srpo_jax.models.attention.block_list import HIDDEN, LEAST, Bounds
from srpo_jax.models.attention.tpu_sizes import KernelSizes, compiler_params, cost
from srpo_jax.models.attention.xla import named

NT = (((1,), (1,)), ((), ()))  # a @ b.T
NN = (((1,), (0,)), ((), ()))  # a @ b


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bounds: Bounds,
    sizes: KernelSizes,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """Masked attention, skipping blocks of scores without a visible pair.

    Args:
        q: [B, K, G, T, d]; k, v: [B, K, T, d]; T a multiple of both sizes. bounds: [B, T].
        causal: the mask lets no query see a later key. interpret: run on any platform, slowly.

    Returns: [B, K, G, T, d] in v's dtype; 0 for a query that sees no key. Scores, softmax and all
    sums are float32.
    """
    return _forward(q, k, v, bounds, sizes, causal, interpret)[0]


def _forward(q, k, v, bounds, sizes, causal, interpret):
    listed = block_list.list_blocks(bounds, sizes.q, sizes.kv, causal=causal)
    kv_heads, groups, _, size = q.shape[1:]
    block = (groups, sizes.q)
    specs = _Specs(q.shape, sizes)
    out, lse = pl.pallas_call(
        _forward_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(kv_heads, listed.count),
            in_specs=[specs.q, specs.kv, specs.kv, specs.bounds],
            out_specs=[specs.q, specs.per_query],
            scratch_shapes=[
                pltpu.VMEM(block, jnp.float32),
                pltpu.VMEM(block, jnp.float32),
                pltpu.VMEM((groups, size, sizes.q), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32),
        ],
        compiler_params=compiler_params(q, sizes, whole_rows=0),
        cost_estimate=cost(q, listed, sizes, backward=False),
        interpret=interpret,
        name="tree_attention_forward",
    )(listed.entries, q, k, v, jnp.stack(bounds, axis=1))
    out, lse = named(out), named(lse)
    return out, (q, k, v, bounds, listed, out, lse)


def _forward_kernel(entries, q, k, v, bounds, out, lse, top, total, mixed):
    """One entry of the list: adds a block of keys to the online softmax of a block of queries.

    q, out (1, 1, G, bq, d); k, v (1, 1, bk, d); bounds (1, 2, bk); lse (1, 1, G, bq). Scratch:
    top, total (G, bq); mixed (G, d, bq), transposed as the scores are.
    """
    entry = entries[pl.program_id(1)]

    @pl.when(block_list.has_flag(entry, block_list.FIRST))
    def _():
        top[...] = jnp.full(top.shape, LEAST, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        mixed[...] = jnp.zeros(mixed.shape, jnp.float32)

    def add(mask):
        keys, values = k[0, 0], v[0, 0].T

        def head(g, _):
            scores = _masked_scores(keys, q[0, 0, g], mask)
            old = top[pl.ds(g, 1)]
            new = jnp.maximum(old, jnp.max(scores, axis=0, keepdims=True))
            weights = jnp.exp(scores - new)
            shrink = jnp.exp(old - new)
            top[pl.ds(g, 1)] = new
            total[pl.ds(g, 1)] = total[pl.ds(g, 1)] * shrink + weights.sum(axis=0, keepdims=True)
            mixed[g] = mixed[g] * shrink + _dot(values, weights.astype(values.dtype), NN)
            return _

        jax.lax.fori_loop(0, q.shape[2], head, None, unroll=True)

    _with_mask(entry, bounds, q.shape[3], add)

    @pl.when(block_list.has_flag(entry, block_list.LAST))
    def _():
        safe = jnp.maximum(total[...], 1e-30)
        lse[0, 0] = top[...] + jnp.log(safe)
        for g in range(q.shape[2]):
            out[0, 0, g] = (mixed[g] / safe[g : g + 1]).T.astype(out.dtype)


def _backward(sizes, causal, interpret, kept, grad):
    del causal
    q, k, v, bounds, listed, out, lse = kept
    # d score = weight * (d weight - sum over keys of weight * d weight); the sum is grad . out.
    mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    kv_heads, groups, length, size = q.shape[1:]
    specs = _Specs(q.shape, sizes)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_kernel, q_blocks=length // sizes.q),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(kv_heads, listed.count),
            in_specs=[specs.q, specs.kv, specs.kv, specs.bounds]
            + [specs.q, specs.per_query, specs.per_query],
            out_specs=[specs.q, specs.whole, specs.whole],
            scratch_shapes=[pltpu.VMEM((groups, size, sizes.q), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, jnp.float32),
            jax.ShapeDtypeStruct(v.shape, jnp.float32),
        ],
        compiler_params=compiler_params(q, sizes, whole_rows=2),
        cost_estimate=cost(q, listed, sizes, backward=True),
        interpret=interpret,
        name="tree_attention_backward",
    )(listed.entries, q, k, v, jnp.stack(bounds, axis=1), grad, lse, mean)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


def _backward_kernel(entries, q, k, v, bounds, grad, lse, mean, dq, dk, dv, dq_sum, *, q_blocks):
    """One entry of the list: its part of dq, dk and dv.

    Shapes as forward; grad, dq like q; mean like lse; dk, dv float32 (1, 1, T, d), the whole row;
    scratch dq_sum (G, d, bq).
    """
    entry = entries[pl.program_id(1)]
    first, q_block = block_list.has_flag(entry, block_list.FIRST), block_list.q_block_of(entry)
    kv_block = k.shape[2]
    at = pl.ds(pl.multiple_of(block_list.kv_block_of(entry) * kv_block, kv_block), kv_block)

    @pl.when(first & (q_block == 0))  # every query block is listed, so this is the row's first
    def _():
        dk[...] = jnp.zeros(dk.shape, dk.dtype)
        dv[...] = jnp.zeros(dv.shape, dv.dtype)

    @pl.when(first)
    def _():
        dq_sum[...] = jnp.zeros(dq_sum.shape, dq_sum.dtype)

    def add(mask):
        keys, values = k[0, 0], v[0, 0]
        keys_t = keys.T
        scale = keys.shape[1] ** -0.5

        def head(g, sums):
            d_keys, d_values = sums
            queries, grads = q[0, 0, g], grad[0, 0, g]
            weights = jnp.exp(_masked_scores(keys, queries, mask) - lse[0, 0, pl.ds(g, 1)])
            d_weights = _dot(values, grads, NT)
            d_scores = weights * (d_weights - mean[0, 0, pl.ds(g, 1)]) * scale
            d_scores = d_scores.astype(keys.dtype)
            dq_sum[g] += _dot(keys_t, d_scores, NN)
            d_keys += _dot(d_scores, queries, NN)
            d_values += _dot(weights.astype(grads.dtype), grads, NN)
            return d_keys, d_values

        zeros = jnp.zeros(keys.shape, jnp.float32)
        d_keys, d_values = jax.lax.fori_loop(0, q.shape[2], head, (zeros, zeros), unroll=True)
        dk[0, 0, at] += d_keys
        dv[0, 0, at] += d_values

    _with_mask(entry, bounds, q.shape[3], add)

    @pl.when(block_list.has_flag(entry, block_list.LAST))
    def _():
        for g in range(q.shape[2]):
            dq[0, 0, g] = dq_sum[g].T.astype(dq.dtype)


attention.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, dims) -> jax.Array:
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _masked_scores(keys: jax.Array, queries: jax.Array, mask: jax.Array | None) -> jax.Array:
    """keys [bk, d], queries [bq, d] -> float32 [bk, bq]."""
    scores = _dot(keys, queries, NT) * keys.shape[1] ** -0.5
    return scores if mask is None else jnp.where(mask, scores, HIDDEN)


def _with_mask(entry: jax.Array, bounds, q_block: int, add) -> None:
    """Calls add(None) if the block is fully visible, else add(mask), bool [bk, bq].

    Both are compiled and one is run: a full block pays nothing for the mask.
    """
    full = block_list.has_flag(entry, block_list.FULL)

    @pl.when(full)
    def _():
        add(None)

    @pl.when(jnp.logical_not(full))
    def _():
        # start and end lie as a row and are needed as a column, one number per key. The TPU has no
        # instruction for that, but one that transposes tiles of 128 x 128: repeat, transpose, cut.
        start, end = (
            jnp.broadcast_to(bounds[0, n : n + 1], (128, bounds.shape[2])).T[:, :1] for n in (0, 1)
        )
        i = jax.lax.broadcasted_iota(jnp.int32, (bounds.shape[2], q_block), 1)
        i += block_list.q_block_of(entry) * q_block
        add((start <= i) & (i < end))


class _Specs:
    """Which block of each array a grid step (kv head, n) is given, n being an entry of the list.

    An index map returns block numbers, one for each axis: block b of an axis with blocks of size s
    begins at b * s.
    """

    def __init__(self, q_shape: tuple[int, ...], sizes: KernelSizes):
        groups, length, size = q_shape[2:]

        def queries(head, n, entries):
            return block_list.row_of(entries[n]), head, 0, block_list.q_block_of(entries[n])

        def keys(head, n, entries):
            return block_list.row_of(entries[n]), head, block_list.kv_block_of(entries[n]), 0

        def key_ints(head, n, entries):
            return block_list.row_of(entries[n]), 0, block_list.kv_block_of(entries[n])

        def row(head, n, entries):
            return block_list.row_of(entries[n]), head, 0, 0

        self.q = pl.BlockSpec((1, 1, groups, sizes.q, size), lambda *a: (*queries(*a), 0))
        self.per_query = pl.BlockSpec((1, 1, groups, sizes.q), queries)
        self.kv = pl.BlockSpec((1, 1, sizes.kv, size), keys)
        self.bounds = pl.BlockSpec((1, 2, sizes.kv), key_ints)
        self.whole = pl.BlockSpec((1, 1, length, size), row, pipeline_mode=pl.Buffered(1))
