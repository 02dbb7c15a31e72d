"""Attention in plain XLA: what every kernel is compared with, and the fallback.

Scores and softmax are float32, the result has the dtype of `v`. Grouped queries (H heads over K
kv heads, H a multiple of K) are an extra axis of the einsum, so k and v are never repeated.
Above `DENSE_LIMIT` tokens the queries are taken `CHUNK` at a time under a rematerialised scan:
the largest buffer is then [B, H, CHUNK, T] float32 instead of [B, H, T, T], in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

CHUNK = 512
OWN_BLOCK = 64  # tokens of a branch that are read at a time while decoding
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
    new_k: jax.Array,
    new_v: jax.Array,
    layer: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """One decoding step of R branches per row over one shared cache and a cache of their own.

    Branch r of row b sees `shared[b, :shared_len[b, r]]`, `own[layer, b, r, :, :t[b, r]]`, and its
    newest token `new[b, r]`, which write_own puts at t afterwards. The shared keys and values are
    read once for all branches; of the own ones OWN_BLOCK tokens at a time, up to the longest
    branch. A block that a branch does not see changes nothing, to the bit: what it computes does
    not depend on how long the others are.

    Args:
        q: [B, R, H, d], the newest token of each branch.
        shared_k, shared_v: [B, K, T, d]; shared_len: int32 [B, R].
        own_k, own_v: [L, B, R, K, M, d] of all layers; new_k, new_v: [B, R, K, d], of this layer;
        layer: int32 scalar; t: int32 [B, R], below M, which is whole blocks or less than one.

    Returns: [B, R, H, d] in the dtype of own_v.
    """
    batch, branches, heads, width = q.shape
    kv_heads, steps = shared_k.shape[1], own_k.shape[4]
    scale, size = width**-0.5, min(steps, OWN_BLOCK)
    groups = _group(q, kv_heads)
    if steps % size:
        raise ValueError(f"a cache of {steps} tokens is no whole blocks of {size}")

    def with_own(first: jax.Array | int, state: Softmax) -> Softmax:
        k, v = (
            jax.lax.dynamic_slice(
                cache,
                (layer, 0, 0, 0, first, 0),
                (1, *cache.shape[1:4], size, cache.shape[5]),
            )[0]
            for cache in (own_k, own_v)
        )
        seen = first + jnp.arange(size) < t[..., None]
        scores = _scores("brkgd,brkmd->brkgm", groups, k) * scale
        return _more(state, scores, seen[:, :, None, None], v, "brkgm,brkmd->brkgd")

    with jax.named_scope("branch_attention"):
        newest = _scores("brkgd,brkd->brkg", groups, new_k) * scale
        values = jnp.broadcast_to(new_v[:, :, :, None].astype(jnp.float32), groups.shape)
        state = Softmax(newest, jnp.ones_like(newest), values)
        # All queries of a kv head are the rows of one product: left apart, a TPU takes each branch
        # for a product of its own.
        merged = (batch, kv_heads, branches * heads // kv_heads)
        rows = jax.tree.map(lambda x: x.swapaxes(1, 2).reshape(*merged, *x.shape[4:]), state)
        asked = groups.swapaxes(1, 2).reshape(*merged, width)
        scores = _scores("bkmd,bktd->bkmt", asked, shared_k) * scale
        length = jnp.repeat(shared_len, heads // kv_heads, axis=1)
        seen = jnp.arange(shared_k.shape[2]) < length[:, None, :, None]
        rows = _more(rows, scores, seen, shared_v, "bkmt,bktd->bkmd")
        apart = (batch, kv_heads, branches, heads // kv_heads)
        state = jax.tree.map(lambda x: x.reshape(*apart, *x.shape[3:]).swapaxes(1, 2), rows)
        if steps == size:
            state = with_own(0, state)
        else:
            blocks = (jnp.max(t) + size - 1) // size
            state = jax.lax.fori_loop(0, blocks, lambda i, x: with_own(i * size, x), state)
        out = state.weighted / state.total[..., None]
    return out.reshape(q.shape).astype(own_v.dtype)


def own_length(new_tokens: int) -> int:
    """The M of own_k for branches of so many new tokens, of which the last is never fed back: whole
    blocks, as a TPU copies a cache of another length into one and back at every call."""
    return max(1, -(-(new_tokens - 1) // OWN_BLOCK)) * OWN_BLOCK


def write_own(own: jax.Array, new: jax.Array, t: jax.Array) -> jax.Array:
    """own [L, B, R, K, M, d] with new [L, B, R, K, d] at (:, b, r, :, t[b, r]).

    As rows of one table, which the compilers do in place. A TPU takes a scatter with more axes for
    a loop over its windows, or turns the whole cache round for it. What is split over a mesh is to
    come in parts (shard_map): the rows of a table are not those of its parts.
    """
    room, width = own.shape[4:]
    first = jnp.arange(new.size // width).reshape(new.shape[:-1]) * room
    rows = (first + t[:, :, None]).reshape(-1)
    table = own.reshape(-1, width)
    table = table.at[rows].set(
        new.reshape(-1, width).astype(own.dtype),
        indices_are_sorted=True,
        unique_indices=True,
        mode="promise_in_bounds",
    )
    return table.reshape(own.shape)


class Softmax(NamedTuple):
    """A softmax over keys that come in parts, float32: the largest score [...], the sum of
    exp(score - largest) [...], and of that times the values [..., d]."""

    largest: jax.Array
    total: jax.Array
    weighted: jax.Array


def _more(
    state: Softmax, scores: jax.Array, seen: jax.Array, values: jax.Array, equation: str
) -> Softmax:
    """The state with further keys: scores [..., m] where `seen` (broadcast), and their values."""
    scores = jnp.where(seen, scores, MASKED)
    largest = jnp.maximum(state.largest, scores.max(-1))
    weights = jnp.where(seen, jnp.exp(scores - largest[..., None]), 0.0)
    before = jnp.exp(state.largest - largest)
    found = jnp.einsum(
        equation, weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return Softmax(
        largest,
        state.total * before + weights.sum(-1),
        state.weighted * before[..., None] + found,
    )


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
