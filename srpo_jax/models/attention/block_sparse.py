"""Attention in plain XLA that computes only the blocks of the block list (block_list.py).

What CPUs use, and the readable twin of the TPU kernel. A loop over query blocks, and inside it one
over the entries that the list holds for that query block. Their number is data: work follows the
mask, nothing is compiled again, and memory is O(T d), forward and backward.

The softmax over a query's keys is not known before all of its key blocks have been seen. So it is
kept "online" (FlashAttention, arXiv 2205.14135, 2307.08691): for each query

    top    the largest score so far
    total  the sum of exp(score - top) so far
    mixed  the sum of exp(score - top) * value so far

When a block brings a larger score, total and mixed are multiplied by exp(old top - new top), which
is what they would be had the new top been known from the start. The result is mixed / total, and
lse = top + log(total), the logarithm of the sum of exp(score), lets the backward pass compute any
softmax weight again as exp(score - lse), without a second pass for maximum and sum.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from srpo_jax.models.attention import block_list
from srpo_jax.models.attention.block_list import HIDDEN, LEAST, Bounds
from srpo_jax.models.attention.xla import named


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bounds: Bounds, block: int, causal: bool
) -> jax.Array:
    """Masked attention, skipping the blocks of block x block scores without a visible pair.

    Args:
        q: [B, K, G, T, d]; k, v: [B, K, T, d]; T a multiple of `block`. bounds: [B, T].
        causal: the mask lets no query see a later key.

    Returns: [B, K, G, T, d] in v's dtype; 0 for a query that sees no key. Scores, softmax and all
    sums are float32.
    """
    return _forward(q, k, v, bounds, block, causal)[0]


def _forward(q, k, v, bounds, block, causal):
    listed = block_list.list_blocks(bounds, block, block, causal=causal)
    begins = block_list.entry_starts(listed, q.shape[0], q.shape[-2] // block)
    scale = q.shape[-1] ** -0.5
    state = (*q.shape[1:3], block)
    start = (
        jnp.full(state, LEAST, jnp.float32),
        jnp.zeros(state, jnp.float32),
        jnp.zeros((*state, q.shape[-1]), jnp.float32),
    )

    def query_block(n, carry):
        out, lse = carry  # of all queries; this step writes its own block
        at = _Queries(listed.entries[begins[n]], block)
        q_ = at.read(q)

        def step(n, carry):
            top, total, mixed = carry
            keys = _Keys(listed.entries[n], block)
            scores = _dot("kgqd,ktd->kgqt", q_, keys.read(k)) * scale
            scores = jnp.where(keys.mask(bounds, at), scores, HIDDEN)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            total = total * shrink + weights.sum(-1)
            mixed = mixed * shrink[..., None]
            mixed += _dot("kgqt,ktd->kgqd", weights.astype(v.dtype), keys.read(v))
            return new_top, total, mixed

        top, total, mixed = jax.lax.fori_loop(begins[n], begins[n + 1], step, start)
        safe = jnp.maximum(total, 1e-30)  # 0 for queries that see no key: their result is 0
        out = at.write(out, (mixed / safe[..., None]).astype(out.dtype))
        return out, at.write(lse, top + jnp.log(safe))

    empty = (jnp.zeros(q.shape, v.dtype), jnp.zeros(q.shape[:-1], jnp.float32))
    out, lse = (named(x) for x in jax.lax.fori_loop(0, len(begins) - 1, query_block, empty))
    return out, (q, k, v, bounds, listed, out, lse)


def _backward(block, causal, kept, grad):
    """Gradients by the weights, which are computed again block by block from scores and lse.

    With s = score, w = softmax weight, o = the sum of w v over the keys and g = the gradient of o:
    dv = w g, dw = g . v, and ds = w (dw - sum over keys of w dw). That sum is g . o, one number per
    query (`mean`), so a block needs nothing of the other blocks.
    """
    del causal
    q, k, v, bounds, listed, out, lse = kept
    begins = block_list.entry_starts(listed, q.shape[0], q.shape[-2] // block)
    scale = q.shape[-1] ** -0.5

    def query_block(n, carry):
        dq, dk, dv = carry
        at = _Queries(listed.entries[begins[n]], block)
        q_, grad_, lse_ = at.read(q), at.read(grad), at.read(lse)[..., None]
        mean = jnp.sum(grad_.astype(jnp.float32) * at.read(out).astype(jnp.float32), axis=-1)

        def step(n, carry):
            dq_, dk, dv = carry
            keys = _Keys(listed.entries[n], block)
            k_, v_ = keys.read(k), keys.read(v)
            scores = _dot("kgqd,ktd->kgqt", q_, k_) * scale
            weights = jnp.exp(jnp.where(keys.mask(bounds, at), scores, HIDDEN) - lse_)
            d_weights = _dot("kgqd,ktd->kgqt", grad_, v_)
            d_scores = (weights * (d_weights - mean[..., None]) * scale).astype(q.dtype)
            dv = keys.add(dv, _dot("kgqt,kgqd->ktd", weights.astype(v.dtype), grad_))
            dk = keys.add(dk, _dot("kgqt,kgqd->ktd", d_scores, q_))
            return dq_ + _dot("kgqt,ktd->kgqd", d_scores, k_), dk, dv

        own = jnp.zeros(q_.shape, jnp.float32)
        own, dk, dv = jax.lax.fori_loop(begins[n], begins[n + 1], step, (own, dk, dv))
        return at.write(dq, own.astype(dq.dtype)), dk, dv

    start = (jnp.zeros_like(q), *(jnp.zeros(x.shape, jnp.float32) for x in (k, v)))
    dq, dk, dv = jax.lax.fori_loop(0, len(begins) - 1, query_block, start)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


attention.defvjp(_forward, _backward)


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


class _Queries:
    """The query block of an entry of the list."""

    def __init__(self, entry: jax.Array, block: int):
        self.row, self.begin = block_list.row_of(entry), block_list.q_block_of(entry) * block
        self.index = self.begin + jnp.arange(block)

    def read(self, x: jax.Array) -> jax.Array:
        """[B, K, G, T, ...] -> [K, G, block, ...]."""
        row = jax.lax.dynamic_index_in_dim(x, self.row, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(row, self.begin, len(self.index), axis=2)

    def write(self, x: jax.Array, new: jax.Array) -> jax.Array:
        start = (self.row, 0, 0, self.begin) + (0,) * (x.ndim - 4)
        return jax.lax.dynamic_update_slice(x, new[None], start)


class _Keys:
    """The key block of an entry of the list."""

    def __init__(self, entry: jax.Array, block: int):
        self.row, self.begin = block_list.row_of(entry), block_list.kv_block_of(entry) * block
        self.block = block

    def read(self, x: jax.Array) -> jax.Array:
        """[B, K, T, d] -> [K, block, d]."""
        row = jax.lax.dynamic_index_in_dim(x, self.row, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(row, self.begin, self.block, axis=1)

    def add(self, x: jax.Array, more: jax.Array) -> jax.Array:
        start = (self.row, 0, self.begin, 0)
        return jax.lax.dynamic_update_slice(x, (self.read(x) + more)[None], start)

    def mask(self, bounds: Bounds, queries: _Queries) -> jax.Array:
        """bool [block queries, block keys]: which of them are visible."""
        start, end = (
            jax.lax.dynamic_slice(x, (self.row, self.begin), (1, self.block)) for x in bounds
        )
        i = queries.index[:, None]
        return (start <= i) & (i < end)
