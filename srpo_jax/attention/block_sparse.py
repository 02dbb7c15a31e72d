"""Attention in plain XLA that computes only the blocks of the list (see blocks.py), one by one.

The online softmax of FlashAttention (arXiv 2205.14135, 2307.08691) as a loop over the list, whose
length is data: work follows the mask, nothing is compiled again, and memory is O(T d), forward and
backward. What CPUs use, and the readable twin of the TPU kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from srpo_jax.attention import blocks
from srpo_jax.attention.blocks import BlockList, Bounds
from srpo_jax.attention.names import named

# Both finite: exp(HIDDEN - LEAST) is exactly 0, so a query that has seen nothing yet (its maximum
# is LEAST) gets weight 0 from hidden keys, and one that never sees any gets the output 0, not NaN.
HIDDEN, LEAST = -1e30, -1e29


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
    listed = blocks.block_list(bounds, block, block, causal=causal)
    scale = q.shape[-1] ** -0.5
    state = (*q.shape[1:3], block)

    def step(n, carry):
        out, lse, top, total, mixed = carry
        entry = listed.entries[n]
        fresh = blocks.has(entry, blocks.FIRST)
        top = jnp.where(fresh, LEAST, top)
        total = jnp.where(fresh, 0.0, total)
        mixed = jnp.where(fresh, 0.0, mixed)
        at = _Place(entry, block)
        scores = _dot("kgqd,ktd->kgqt", at.q(q), at.kv(k)) * scale
        scores = jnp.where(at.mask(bounds), scores, HIDDEN)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        total = total * shrink + weights.sum(-1)
        mixed = mixed * shrink[..., None]
        mixed += _dot("kgqt,ktd->kgqd", weights.astype(v.dtype), at.kv(v))
        # Written at every entry; the one that stays is the query block's last.
        safe = jnp.maximum(total, 1e-30)
        out = at.set_q(out, (mixed / safe[..., None]).astype(out.dtype))
        lse = at.set_q(lse, new_top + jnp.log(safe))
        return out, lse, new_top, total, mixed

    start = (
        jnp.zeros(q.shape, v.dtype),
        jnp.zeros(q.shape[:-1], jnp.float32),
        jnp.zeros(state, jnp.float32),
        jnp.zeros(state, jnp.float32),
        jnp.zeros((*state, q.shape[-1]), jnp.float32),
    )
    out, lse = (named(x) for x in jax.lax.fori_loop(0, listed.count, step, start)[:2])
    return out, (q, k, v, bounds, listed, out, lse)


def _backward(block, causal, kept, grad):
    del causal
    q, k, v, bounds, listed, out, lse = kept
    scale = q.shape[-1] ** -0.5
    # d score = weight * (d weight - sum over keys of weight * d weight); the sum is grad . out.
    mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def step(n, carry):
        dq, dk, dv = carry
        at = _Place(listed.entries[n], block)
        q_, k_, v_, grad_ = at.q(q), at.kv(k), at.kv(v), at.q(grad)
        scores = _dot("kgqd,ktd->kgqt", q_, k_) * scale
        scores = jnp.where(at.mask(bounds), scores, HIDDEN)
        weights = jnp.exp(scores - at.q(lse)[..., None])
        d_weights = _dot("kgqd,ktd->kgqt", grad_, v_)
        d_scores = (weights * (d_weights - at.q(mean)[..., None]) * scale).astype(q.dtype)
        dv = at.add_kv(dv, _dot("kgqt,kgqd->ktd", weights.astype(v.dtype), grad_))
        dk = at.add_kv(dk, _dot("kgqt,kgqd->ktd", d_scores, q_))
        dq = at.set_q(dq, at.q(dq) + _dot("kgqt,ktd->kgqd", d_scores, k_))
        return dq, dk, dv

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    grads = jax.lax.fori_loop(0, listed.count, step, start)
    return *(g.astype(x.dtype) for g, x in zip(grads, (q, k, v))), None


attention.defvjp(_forward, _backward)


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


class _Place:
    """Reads and writes the blocks of one entry of the list."""

    def __init__(self, entry: jax.Array, block: int):
        self.block = block
        self.row = blocks.row_of(entry)
        self.q_at = blocks.q_block_of(entry) * block
        self.kv_at = blocks.kv_block_of(entry) * block

    def q(self, x: jax.Array) -> jax.Array:
        """[B, K, G, T, ...] -> the query block [K, G, block, ...]."""
        row = jax.lax.dynamic_index_in_dim(x, self.row, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(row, self.q_at, self.block, axis=2)

    def kv(self, x: jax.Array) -> jax.Array:
        """[B, K, T, d] -> the key block [K, block, d]."""
        row = jax.lax.dynamic_index_in_dim(x, self.row, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(row, self.kv_at, self.block, axis=1)

    def set_q(self, x: jax.Array, new: jax.Array) -> jax.Array:
        start = (self.row, 0, 0, self.q_at) + (0,) * (x.ndim - 4)
        return jax.lax.dynamic_update_slice(x, new[None], start)

    def add_kv(self, x: jax.Array, more: jax.Array) -> jax.Array:
        start = (self.row, 0, self.kv_at, 0)
        return jax.lax.dynamic_update_slice(x, (self.kv(x) + more)[None], start)

    def mask(self, bounds: Bounds) -> jax.Array:
        """bool [block queries, block keys]."""
        i = (self.q_at + jnp.arange(self.block))[:, None]
        start, end = (
            jax.lax.dynamic_slice(x, (self.row, self.kv_at), (1, self.block)) for x in bounds
        )
        return (start <= i) & (i < end)
