"""Which blocks of the score matrix hold a visible pair: one flat list, computed on the device.

Every mask of this package gives each key j one interval of queries that see it: query i sees key j
iff `start[j] <= i < end[j]`.
    tree      start[j] = j, end[j] = subtree_end[j]  (j's own subtree, laid out depth first)
    segment   the run of equal ids around j          (a window, a frame or a tile of a picture)
Two ints per key are then the whole mask, and the least and largest of them over a block of keys
say whether a block of queries sees any of it, or all of it (FlashMask, arXiv 2410.01359, keeps up
to four ints per key for more general masks; this is its one-interval case).

The list holds one int per block, ordered by row, then query block, then key block. Its length is
static and how many entries count is data, so other trees never mean another compilation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.errors import UserError

# An entry, from the highest bit: 10 bits row, 9 bits query block, 9 bits key block, 3 flags.
# One int, because TPU kernels hold the list in scalar memory (1 MiB).
ROW_BITS, BLOCK_BITS, FLAG_BITS = 10, 9, 3
FIRST, LAST, FULL = 1, 2, 4  # of its query block: the first entry, the last; all pairs are visible
UNUSED = np.iinfo(np.int32).max  # fills the list; sorts behind every entry
# The score of a hidden key, and a query's largest score before it has seen a key. Both finite:
# exp(HIDDEN - LEAST) is exactly 0, so hidden keys get weight 0 even then, and a query that never
# sees any gets the output 0, not NaN.
HIDDEN, LEAST = -1e30, -1e29


class Bounds(NamedTuple):
    """start, end: int32 [B, T]; query i sees key j iff start[j] <= i < end[j] (never if equal)."""

    start: jax.Array
    end: jax.Array


class BlockList(NamedTuple):
    """entries: int32 [N], see the fields below; count: int32 scalar, how many of them are used."""

    entries: jax.Array
    count: jax.Array


def tree_bounds(subtree_end: jax.Array) -> Bounds:
    """int32 [B, T], the index just past each token's subtree -> Bounds."""
    own = jnp.broadcast_to(jnp.arange(subtree_end.shape[1], dtype=jnp.int32), subtree_end.shape)
    return Bounds(own, subtree_end.astype(jnp.int32))


def segment_bounds(seg: jax.Array) -> Bounds:
    """Segment ids int32 [B, P] -> Bounds. A segment is a run of equal ids; ids below 0 are padding,
    which sees nothing and is seen by nothing. An id that comes back later is another segment."""
    length = seg.shape[1]
    index = jnp.arange(length, dtype=jnp.int32)
    border = seg[:, 1:] != seg[:, :-1]
    edge = jnp.ones_like(border, shape=(seg.shape[0], 1))
    # The run's start is the last index so far that begins a run; its end the first one to come.
    starts = jnp.where(jnp.concatenate([edge, border], 1), index, 0)
    ends = jnp.where(jnp.concatenate([border, edge], 1), index + 1, length)
    start = jax.lax.cummax(starts, axis=1)
    end = jax.lax.cummin(ends, axis=1, reverse=True)
    hidden = seg < 0
    return Bounds(jnp.where(hidden, 0, start), jnp.where(hidden, 0, end))


def pad_bounds(bounds: Bounds, length: int) -> Bounds:
    """Bounds with keys up to `length` that nothing sees."""
    extra = ((0, 0), (0, length - bounds.end.shape[1]))
    return Bounds(*(jnp.pad(x, extra) for x in bounds))


def block_list(bounds: Bounds, q_block: int, kv_block: int, *, causal: bool) -> BlockList:
    """The blocks that hold a visible pair, and the first key block of each query block without any.

    The latter because a kernel must write every query block; it counts as not fully visible. The
    list is exact for trees and for segments with padding at the end (no other block is listed), and
    safe for any bounds: what is not listed has no visible pair, what is FULL has no masked one.

    Args:
        bounds: [B, T] with T a multiple of both block sizes.
        causal: no query sees a later key; halves the static length N of the list.

    Errors: UserError when the numbers of rows or blocks do not fit the bits of an entry.
    """
    rows, length = bounds.end.shape
    q_blocks, kv_blocks = length // q_block, length // kv_block
    if rows > 1 << ROW_BITS or max(q_blocks, kv_blocks) > 1 << BLOCK_BITS:
        raise UserError(
            f"attention over {rows} rows of {length} tokens or patches has {q_blocks} x {kv_blocks}"
            f" blocks a row; at most {1 << ROW_BITS} rows of {1 << BLOCK_BITS} x {1 << BLOCK_BITS} "
            "can be listed: use shorter rows (pack.row_tokens), or attention 'block' or 'xla'"
        )
    visible, full = _per_block(bounds, q_block, kv_block)
    q_index, kv_index = np.indices((q_blocks, kv_blocks))
    empty = ~visible.any(axis=-1, keepdims=True)
    listed = visible | (empty & (kv_index == 0))
    group = (jnp.arange(rows)[:, None, None] << BLOCK_BITS) + q_index
    entries = (((group << BLOCK_BITS) + kv_index) << FLAG_BITS) + jnp.where(full, FULL, 0)
    entries = jnp.where(listed, entries, UNUSED).astype(jnp.int32)
    possible = np.ones_like(q_index, bool)
    if causal:
        possible = kv_index * kv_block < (q_index + 1) * q_block
    # Ascending order is the order of the list, and the unused ones go to the end.
    entries = jnp.sort(entries[:, possible].reshape(-1), stable=False)
    count = jnp.sum(entries != UNUSED, dtype=jnp.int32)
    group = entries >> (BLOCK_BITS + FLAG_BITS)
    border = jnp.concatenate([group[1:] != group[:-1], jnp.ones(1, bool)])
    first = jnp.where(jnp.roll(border, 1), FIRST, 0)
    last = jnp.where(border, LAST, 0)
    return BlockList(entries | first | last, count)


def begins(listed: BlockList, rows: int, q_blocks: int) -> jax.Array:
    """int32 [rows * q_blocks + 1]: where in the list the entries of each query block begin."""
    own = row_of(listed.entries) * q_blocks + q_block_of(listed.entries)
    own = jnp.where(listed.entries == UNUSED, rows * q_blocks, own)
    return jnp.searchsorted(own, jnp.arange(rows * q_blocks + 1)).astype(jnp.int32)


def q_blocks_of_keys(bounds: Bounds, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """(first, stop), int32 [B, key blocks]: the query blocks that see some key of each block.

    One interval, as each key is seen by one; empty (first = stop = 0) for keys that nothing sees.
    """
    least_start, largest_end = _per_key_block(bounds, kv_block)
    seen = least_start < largest_end
    first = jnp.where(seen, least_start // q_block, 0)
    return first, jnp.where(seen, -(-largest_end // q_block), 0)


def _per_block(bounds: Bounds, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """bool [B, q blocks, key blocks]: some pair is visible; every pair is."""
    rows, length = bounds.end.shape
    start, end = (x.reshape(rows, 1, length // kv_block, kv_block) for x in bounds)
    begin = (np.arange(length // q_block, dtype=np.int32) * q_block)[:, None]
    least_start, largest_end = (x[:, None] for x in _per_key_block(bounds, kv_block))
    visible = (least_start < begin + q_block) & (largest_end > begin)
    full = (jnp.max(start, axis=-1) <= begin) & (jnp.min(end, axis=-1) >= begin + q_block)
    return visible, full


def _per_key_block(bounds: Bounds, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """int32 [B, key blocks]: the least start and the largest end of the keys that are seen; the
    row's length and 0 where none is."""
    rows, length = bounds.end.shape
    start, end = (x.reshape(rows, length // kv_block, kv_block) for x in bounds)
    seen = start < end
    least_start = jnp.min(jnp.where(seen, start, length), axis=-1)
    return least_start, jnp.max(jnp.where(seen, end, 0), axis=-1)


def row_of(entry: jax.Array) -> jax.Array:
    """The row of an entry (of any shape; also a scalar inside a kernel)."""
    return entry >> (2 * BLOCK_BITS + FLAG_BITS)


def q_block_of(entry: jax.Array) -> jax.Array:
    """The query block of an entry, counted within its row."""
    return (entry >> (BLOCK_BITS + FLAG_BITS)) & ((1 << BLOCK_BITS) - 1)


def kv_block_of(entry: jax.Array) -> jax.Array:
    """The key block of an entry, counted within its row."""
    return (entry >> FLAG_BITS) & ((1 << BLOCK_BITS) - 1)


def has(entry: jax.Array, flag: int) -> jax.Array:
    """Whether an entry carries FIRST, LAST or FULL."""
    return (entry & flag) != 0
