"""Tree and segment attention as Pallas kernels for NVIDIA GPUs (Triton), forward and backward.

The scheme of FlashAttention-2 (arXiv 2307.08691) over lists of blocks. block_sparse.py computes the
same and explains the mathematics; read it first.

Programs of a GPU run side by side in no order, so each must own what it writes. Three kernels:

    forward   a program owns one block of queries of one head. It walks that block's part of the
              block list (block_list.py) and writes out and lse.
    dq        the same walk, for the gradient of the queries.
    dkv       a program owns one block of keys of one kv head. It walks the query blocks that see
              it, of all heads that read it: one interval of them, as every mask of this package
              gives each key one interval of queries.

So nothing is added up by atomics, and results are reproducible. The price against one backward
kernel is that the weights are computed twice.

Never run on a GPU: checked in interpret mode and compiled ahead of time (docs/performance.md).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from srpo_jax.errors import UserError
from srpo_jax.models.attention import block_list
from srpo_jax.models.attention.block_list import HIDDEN, LEAST, Bounds
from srpo_jax.models.attention.xla import named

NT = (((1,), (1,)), ((), ()))  # a @ b.T
NN = (((1,), (0,)), ((), ()))  # a @ b
ROOMY = ("8.0", "9.0", "10.0", "10.3")  # compute capabilities with 163 KiB and more for a block


class KernelSizes(NamedTuple):
    """q, kv: queries and keys of a block of scores (powers of two, at least 16). warps: of a
    program, 32 threads each."""

    q: int
    kv: int
    warps: int


def sizes_for(size: int, dtype: jax.typing.DTypeLike, capability: str) -> KernelSizes:
    """For heads of `size` on a chip of this compute capability ("9.0"). Compiled, not tuned.

    Heads of 256 bytes are 128 in bfloat16. The larger blocks keep them in registers and need 113
    KiB of shared memory, which the chips for data centres have (A100 163, H100 and B200 227) and
    those for desks and inference do not (8.6, 8.9 and 12.0: 99).
    Errors: UserError for heads of more than 512 bytes.
    """
    width = _padded(size) * jnp.dtype(dtype).itemsize
    if width > 512:
        raise UserError(
            f"the GPU attention kernel takes heads of 512 bytes at most, not {width} ({size} in "
            f"{jnp.dtype(dtype).name}): use attention 'block'"
        )
    if width <= (256 if capability in ROOMY else 128):
        return KernelSizes(128, 64, 8)
    return KernelSizes(64, 32, 4)


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
    size = q.shape[-1]
    extra = _padded(size) - size  # zeros change neither scores nor results
    q, k, v = (jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, extra))) for x in (q, k, v))
    setting = _Setting(size**-0.5, sizes, causal, interpret)
    out: Any = _attention(q, k, v, bounds, setting)
    return out[..., :size]


def _padded(size: int) -> int:
    """Triton's arrays have sides that are powers of two."""
    return max(16, pl.next_power_of_2(size))


class _Setting(NamedTuple):
    """What is static in all kernels. scale: of the scores, by the heads' size before padding."""

    scale: float
    sizes: KernelSizes
    causal: bool
    interpret: bool

    def call(self, kernel, **options):
        """pallas_call with what all kernels here have in common."""
        return pl.pallas_call(
            functools.partial(kernel, setting=self),
            compiler_params=pltriton.CompilerParams(num_warps=self.sizes.warps, num_stages=2),
            interpret=self.interpret,
            **options,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, bounds, setting):
    return _forward(q, k, v, bounds, setting)[0]


def _forward(q, k, v, bounds, setting):
    rows, kv_heads, groups, length, _ = q.shape
    sizes = setting.sizes
    listed = block_list.list_blocks(bounds, sizes.q, sizes.kv, causal=setting.causal)
    begins = block_list.entry_starts(listed, rows, length // sizes.q)
    specs = _Specs(q.shape, sizes)
    out, lse = setting.call(
        _forward_kernel,
        grid=(length // sizes.q, kv_heads * groups, rows),
        in_specs=[specs.all(begins), specs.all(listed.entries)]
        + [specs.q, specs.row, specs.row, specs.ints, specs.ints],
        out_specs=[specs.q, specs.per_query],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32),
        ],
        name="tree_attention_forward",
    )(begins, listed.entries, q, k, v, *bounds)
    out, lse = named(out), named(lse)
    return out, (q, k, v, bounds, listed, out, lse)


def _forward_kernel(begins, entries, q, k, v, start, end, out, lse, *, setting):
    """One block of queries of one head: its result and lse, by the online softmax.

    q, out (bq, d); k, v (T, d); start, end (T,); lse (bq,). begins, entries: the whole list.
    """
    bq, bk = setting.sizes[:2]
    queries, i = q[...], _indices(bq)

    def step(n, carry):
        top, total, mixed = carry
        at = pl.ds(block_list.kv_block_of(entries[n]) * bk, bk)
        scores = _dot(queries, k[at, :], NT) * setting.scale
        scores = jnp.where(_seen(start, end, at, i), scores, HIDDEN)
        new = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp(scores - new[:, None])
        shrink = jnp.exp(top - new)
        mixed = mixed * shrink[:, None] + _dot(weights.astype(v.dtype), v[at, :], NN)
        return new, total * shrink + jnp.sum(weights, axis=1), mixed

    start_ = (
        jnp.full((bq,), LEAST, jnp.float32),
        jnp.zeros((bq,), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    top, total, mixed = jax.lax.fori_loop(*_own_entries(begins), step, start_)
    safe = jnp.maximum(total, 1e-30)
    out[...] = (mixed / safe[:, None]).astype(out.dtype)
    lse[...] = top + jnp.log(safe)


def _backward(setting, kept, grad):
    q, k, v, bounds, listed, out, lse = kept
    # d score = weight * (d weight - sum over keys of weight * d weight); the sum is grad . out.
    mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    rows, kv_heads, groups, length, _ = q.shape
    sizes = setting.sizes
    begins = block_list.entry_starts(listed, rows, length // sizes.q)
    specs = _Specs(q.shape, sizes)
    dq = setting.call(
        _dq_kernel,
        grid=(length // sizes.q, kv_heads * groups, rows),
        in_specs=[specs.all(begins), specs.all(listed.entries)]
        + [specs.q, specs.row, specs.row, specs.ints, specs.ints]
        + [specs.q, specs.per_query, specs.per_query],
        out_specs=specs.q,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        name="tree_attention_dq",
    )(begins, listed.entries, q, k, v, *bounds, grad, lse, mean)
    first, stop = block_list.q_blocks_of_keys(bounds, sizes.q, sizes.kv)
    dk, dv = setting.call(
        _dkv_kernel,
        grid=(length // sizes.kv, kv_heads, rows),
        in_specs=[specs.range, specs.range, specs.heads, specs.kv, specs.kv]
        + [specs.ints, specs.ints, specs.heads, specs.per_head, specs.per_head],
        out_specs=[specs.kv, specs.kv],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        name="tree_attention_dkv",
    )(first, stop, q, k, v, *bounds, grad, lse, mean)
    return dq, dk, dv, None


def _dq_kernel(begins, entries, q, k, v, start, end, grad, lse, mean, dq, *, setting):
    """One block of queries of one head: its gradient. Shapes as forward; grad, dq (bq, d); lse,
    mean (bq,)."""
    bq, bk = setting.sizes[:2]
    queries, grads, i = q[...], grad[...], _indices(bq)
    lse_, mean_ = lse[...][:, None], mean[...][:, None]

    def step(n, total):
        at = pl.ds(block_list.kv_block_of(entries[n]) * bk, bk)
        keys = k[at, :]
        scores = _dot(queries, keys, NT) * setting.scale
        weights = jnp.exp(jnp.where(_seen(start, end, at, i), scores, HIDDEN) - lse_)
        d_scores = weights * (_dot(grads, v[at, :], NT) - mean_) * setting.scale
        return total + _dot(d_scores.astype(keys.dtype), keys, NN)

    total = jax.lax.fori_loop(*_own_entries(begins), step, jnp.zeros(q.shape, jnp.float32))
    dq[...] = total.astype(dq.dtype)


def _dkv_kernel(first, stop, q, k, v, start, end, grad, lse, mean, dk, dv, *, setting):
    """One block of keys of one kv head: the gradients of its keys and values.

    q, grad (G, T, d); lse, mean (G, T); k, v, dk, dv (bk, d); first, stop (key blocks,): the query
    blocks that see each key block.
    """
    bq, bk = setting.sizes[:2]
    block = pl.program_id(0)
    keys, values, at = k[...], v[...], pl.ds(block * bk, bk)
    begin, end_ = start[at][:, None], end[at][:, None]
    lowest, count = first[block], stop[block] - first[block]

    def step(n, sums):  # n counts the query blocks of head 0, then those of head 1, ...
        d_keys, d_values = sums
        g, q_block = jax.lax.div(n, count), lowest + jax.lax.rem(n, count)
        here = pl.ds(q_block * bq, bq)
        i = (q_block * bq + jnp.arange(bq))[None]
        queries, grads = q[g, here, :], grad[g, here, :]
        scores = _dot(keys, queries, NT) * setting.scale  # keys down, queries across
        scores = jnp.where((begin <= i) & (i < end_), scores, HIDDEN)
        weights = jnp.exp(scores - lse[g, here][None])
        d_values += _dot(weights.astype(grads.dtype), grads, NN)
        d_scores = weights * (_dot(values, grads, NT) - mean[g, here][None]) * setting.scale
        return d_keys + _dot(d_scores.astype(queries.dtype), queries, NN), d_values

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_keys, d_values = jax.lax.fori_loop(0, count * q.shape[0], step, (zeros, zeros))
    dk[...] = d_keys.astype(dk.dtype)
    dv[...] = d_values.astype(dv.dtype)


_attention.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, dims) -> jax.Array:
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _own_entries(begins) -> tuple[jax.Array, jax.Array]:
    """(begin, end) of the entries of this program's query block in the list. The grid is (query
    block, head, row)."""
    own = pl.program_id(2) * pl.num_programs(0) + pl.program_id(0)
    return begins[own], begins[own + 1]


def _indices(block: int) -> jax.Array:
    """The indices in the row of this program's queries."""
    return pl.program_id(0) * block + jnp.arange(block)


def _seen(start, end, at, i: jax.Array) -> jax.Array:
    """bool [queries, keys]: which of the keys `at` the queries of the row's indices i see."""
    i = i[:, None]
    return (start[at][None] <= i) & (i < end[at][None])


class _Specs:
    """The part of each array that a program (block, head, row) is given.

    None in a block's shape: one entry of that axis, and the kernel does not see the axis.
    """

    def __init__(self, q_shape: tuple[int, ...], sizes: KernelSizes):
        _, _, groups, length, size = q_shape

        def query(n, head, row):
            return row, jax.lax.div(head, groups), jax.lax.rem(head, groups), n

        self.q = pl.BlockSpec((None, None, None, sizes.q, size), lambda *a: (*query(*a), 0))
        self.per_query = pl.BlockSpec((None, None, None, sizes.q), query)
        # Whole rows: programs for queries know a head, those for keys a kv head.
        self.row = pl.BlockSpec(
            (None, None, length, size), lambda n, head, row: (*query(n, head, row)[:2], 0, 0)
        )
        self.heads = pl.BlockSpec(
            (None, None, groups, length, size), lambda n, head, row: (row, head, 0, 0, 0)
        )
        self.per_head = pl.BlockSpec(
            (None, None, groups, length), lambda n, head, row: (row, head, 0, 0)
        )
        self.kv = pl.BlockSpec((None, None, sizes.kv, size), lambda n, head, row: (row, head, n, 0))
        self.ints = pl.BlockSpec((None, length), lambda n, head, row: (row, 0))
        self.range = pl.BlockSpec((None, length // sizes.kv), lambda n, head, row: (row, 0))

    @staticmethod
    def all(x: jax.Array) -> pl.BlockSpec:
        """The whole array, for every program."""
        return pl.BlockSpec(x.shape, lambda n, head, row: (0,) * x.ndim)
