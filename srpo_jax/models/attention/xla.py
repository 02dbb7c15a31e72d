"""Attention in plain XLA: what every kernel is compared with, and the fallback.

Scores and softmax are float32, the result has the dtype of `v`. Grouped queries (H heads over K
kv heads, H a multiple of K) are an extra axis of the einsum, so k and v are never repeated.
Above `DENSE_LIMIT` tokens the queries are taken `CHUNK` at a time under a rematerialised scan:
the largest buffer is then [B, H, CHUNK, T] float32 instead of [B, H, T, T], in both directions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

CHUNK = 512
DENSE_LIMIT = 1024
# Finite, so that a row that sees nothing gives finite (meaningless) values and not NaN; far below
# any score, so exp() of it is exactly 0 and so is its gradient.
MASKED = -1e30

# The name under which rematerialisation policies (blocks/decoder.py) know attention's results.
ATTENTION = "attention"

Visible = Callable[[jax.Array], jax.Array]


def tree_attention(q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array) -> jax.Array:
    """Attention along the root paths of token trees laid out depth first.

    Query i sees key j iff `j <= i < subtree_end[j]`: j is i itself or one of its ancestors. With
    every subtree_end equal to T this is causal attention; several trees may share a row.

    Args:
        q: [B, T, H, d]; k, v: [B, T, K, d].
        subtree_end: int32 [B, T], the index just past the subtree of each token (> its own index).

    Returns: [B, T, H, d] in v's dtype.
    """
    keys = jnp.arange(k.shape[1])

    def visible(rows: jax.Array) -> jax.Array:
        i = rows[None, :, None]
        return (keys <= i) & (i < subtree_end[:, None, :])

    return _by_query_chunks(q, k, v, visible)


def segment_attention(q: jax.Array, k: jax.Array, v: jax.Array, seg: jax.Array) -> jax.Array:
    """Full attention inside segments: a position sees exactly the positions of equal `seg`.

    Args: q [B, P, H, d]; k, v [B, P, K, d]; seg int32 [B, P], below 0 for padding.
    Returns: [B, P, H, d] in v's dtype; 0 for padding.
    """

    def visible(rows: jax.Array) -> jax.Array:
        # Rows past the end (the last chunk's filling) repeat the last one and are cut off later.
        own = jnp.take(seg, rows, axis=1, mode="clip")
        return own[:, :, None] == seg[:, None, :]

    out = _by_query_chunks(q, k, v, visible)
    return jnp.where((seg >= 0)[..., None, None], out, 0)


def branch_attention(
    q: jax.Array,
    shared_k: jax.Array,
    shared_v: jax.Array,
    shared_len: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """One decoding step of R branches per row over one shared cache and a cache of their own.

    Branch r of row b sees `shared[b, :shared_len[b, r]]` and `own[b, r, :t + 1]`. The shared
    keys and values are read once for all branches; the two parts meet in one softmax.

    Args:
        q: [B, R, H, d], the newest token of each branch.
        shared_k, shared_v: [B, T, K, d]; shared_len: int32 [B, R].
        own_k, own_v: [B, R, M, K, d], already holding the newest token at t; t: int32 scalar.

    Returns: [B, R, H, d] in the dtype of own_v.
    """
    length, steps = shared_k.shape[1], own_k.shape[2]
    groups = _group(q, shared_k.shape[2])
    scale = q.shape[-1] ** -0.5
    with jax.named_scope("branch_attention"):
        shared = _scores("brkgd,btkd->bkgrt", groups, shared_k) * scale
        own = _scores("brkgd,brmkd->bkgrm", groups, own_k) * scale
        see_shared = jnp.arange(length) < shared_len[:, :, None]
        see_own = jnp.arange(steps) <= t
        shared = jnp.where(see_shared[:, None, None], shared, MASKED)
        own = jnp.where(see_own, own, MASKED)
        weights = jax.nn.softmax(jnp.concatenate([shared, own], axis=-1), axis=-1)
        weights = weights.astype(own_v.dtype)
        out = jnp.einsum("bkgrt,btkd->brkgd", weights[..., :length], shared_v)
        out += jnp.einsum("bkgrm,brmkd->brkgd", weights[..., length:], own_v)
    return out.reshape(q.shape)


def named(x: jax.Array) -> jax.Array:
    """x, to be kept by policies that keep attention's results. Inside a custom VJP it must stand in
    the forward rule, on everything there that costs the kernel to compute again."""
    return checkpoint_name(x, ATTENTION)


def _group(q: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, d] -> [B, T, K, H/K, d]; head h reads kv head h // (H/K)."""
    batch, length, heads, size = q.shape
    return q.reshape(batch, length, kv_heads, heads // kv_heads, size)


def _scores(equation: str, q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum(equation, q, k, preferred_element_type=jnp.float32)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B, C, H, d], k and v [B, T, K, d], mask bool [B, C, T] -> [B, C, H, d]."""
    scores = _scores("bckgd,btkd->bkgct", _group(q, k.shape[2]), k) * q.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgct,btkd->bckgd", weights, v).reshape(q.shape)


def _by_query_chunks(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible) -> jax.Array:
    """`visible(rows [C]) -> bool [B, C, T]` is asked per chunk: no T x T mask is ever stored."""
    batch, length, heads, size = q.shape
    with jax.named_scope("attention"):
        if length <= DENSE_LIMIT:
            return named(_attend(q, k, v, visible(jnp.arange(length))))
        chunks = -(-length // CHUNK)
        filled = jnp.pad(q, ((0, 0), (0, chunks * CHUNK - length), (0, 0), (0, 0)))
        queries = filled.reshape(batch, chunks, CHUNK, heads, size).swapaxes(0, 1)

        @jax.checkpoint
        def step(carry: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            index, rows_q = chunk
            rows = index * CHUNK + jnp.arange(CHUNK)
            return carry, _attend(rows_q, k, v, visible(rows))

        _, out = jax.lax.scan(step, None, (jnp.arange(chunks), queries))
        out = out.swapaxes(0, 1).reshape(batch, chunks * CHUNK, heads, size)[:, :length]
        return named(out)
