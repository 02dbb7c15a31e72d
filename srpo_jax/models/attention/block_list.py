"""Which blocks of the score matrix hold a visible pair: one flat list, computed on the device.

Every mask of this package gives each key j one interval of queries that see it: query i sees key j
iff `start[j] <= i < end[j]`.
    tree      start[j] = j, end[j] = subtree_end[j]  (j's own subtree, laid out depth first)
    segment   the run of equal ids around j          (a window, a frame or a tile of a picture)
Two ints per key are then the whole mask, and the least and largest of them over a block of keys
say whether a block of queries sees any of it, or all of it (FlashMask, arXiv 2410.01359, keeps up
to four ints per key for more general masks; this is its one-interval case).

An example: the tree of pack/tree_layout.py, six tokens p a b c d e with the paths p-a-b-c, p-a-d
and p-e, cut into blocks of 2 queries x 2 keys ("x": visible).

    key          p a   b c   d e
    end          6 5   4 4   5 6        query block 0, queries p a: key block 0
    query p      x .   . .   . .
          a      x x   . .   . .        query block 1, queries b c: key blocks 0 (FULL: all four
                                          pairs are visible, so no mask is computed) and 1
          b      x x   x .   . .
          c      x x   x x   . .        query block 2, queries d e: key blocks 0 and 2. Key block 1
                                          is skipped: its largest end is 4, so nothing from query
          d      x x   . .   x .          4 on sees b or c.
          e      x .   . .   . x

The list holds one int per block, ordered by row, then query block, then key block: here the five
entries (0,0) (1,0) (1,1) (2,0) (2,2) of nine blocks. Its length is static (all blocks that a causal
mask could show, six here) and how many entries count is data, so other trees never mean another
compilation. A kernel that walks the list must know when it comes to another query block: the first
and the last entry of each carry a flag, FIRST and LAST.
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
UNUSED = np.iinfo(np.int32).max  # fills the list up; sorts behind every entry
# The score of a hidden key, and a query's largest score before it has seen a key. Both finite:
# exp(HIDDEN - LEAST) is exactly 0, so hidden keys get weight 0 even then, and a query that never
# sees any gets the output 0, not NaN.
HIDDEN, LEAST = -1e30, -1e29


class Bounds(NamedTuple):
    """start, end: int32 [B, T]; query i sees key j iff start[j] <= i < end[j] (never if equal)."""

    start: jax.Array
    end: jax.Array


class BlockList(NamedTuple):
    """entries: int32 [N], packed as the bits above say, read by `row_of`, `q_block_of`,
    `kv_block_of` and `has_flag`. count: int32 scalar, how many of them are used."""

    entries: jax.Array
    count: jax.Array


def tree_bounds(subtree_end: jax.Array) -> Bounds:
    """The bounds of trees, from int32 [B, T], the index just past each token's subtree."""
    own = jnp.broadcast_to(jnp.arange(subtree_end.shape[1], dtype=jnp.int32), subtree_end.shape)
    return Bounds(own, subtree_end.astype(jnp.int32))


def segment_bounds(seg: jax.Array) -> Bounds:
    """The bounds of segments, from their ids, int32 [B, P].

    A segment is a run of equal ids; an id that comes back later is another segment. Ids below 0 are
    padding, which sees nothing and is seen by nothing. Ids 7 7 4 -1: start 0 0 2 0, end 2 2 3 0.
    """
    length = seg.shape[1]
    index = jnp.arange(length, dtype=jnp.int32)
    border = seg[:, 1:] != seg[:, :-1]
    edge = jnp.ones_like(border, shape=(seg.shape[0], 1))
    # `starts` holds an index where a run begins and 0 elsewhere, so the running maximum is the
    # start of the run that an index is in; `ends`, from the right, likewise.
    starts = jnp.where(jnp.concatenate([edge, border], 1), index, 0)
    ends = jnp.where(jnp.concatenate([border, edge], 1), index + 1, length)
    start = jax.lax.cummax(starts, axis=1)
    end = jax.lax.cummin(ends, axis=1, reverse=True)
    hidden = seg < 0
    return Bounds(jnp.where(hidden, 0, start), jnp.where(hidden, 0, end))


def pad_bounds(bounds: Bounds, length: int) -> Bounds:
    """The bounds with keys added up to `length`, which nothing sees (start = end = 0)."""
    extra = ((0, 0), (0, length - bounds.end.shape[1]))
    return Bounds(*(jnp.pad(x, extra) for x in bounds))


def list_blocks(bounds: Bounds, q_block: int, kv_block: int, *, causal: bool) -> BlockList:
    """Lists the blocks that hold a visible pair.

    A query block without any visible pair (padding) is listed once, with key block 0 and not FULL:
    a kernel writes a query block's result at its LAST entry, so every one needs an entry.

    The list is exact for trees and for segments with padding at the end (no other block is listed).
    It is safe for any bounds: what is not listed has no visible pair, what is FULL has no masked
    one.

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
    # Blocks above the diagonal are left out of the array itself, not only marked as unused:
    # `possible` is numpy, known when compiling.
    possible = np.ones_like(q_index, bool)
    if causal:
        possible = kv_index * kv_block < (q_index + 1) * q_block
    # Row, query block and key block stand in the higher bits, from left to right: ascending order
    # is the order of the list, and UNUSED goes to the end.
    entries = jnp.sort(entries[:, possible].reshape(-1), stable=False)
    count = jnp.sum(entries != UNUSED, dtype=jnp.int32)
    # An entry is the last of its query block if row or query block change behind it; then the next
    # one is a first. jnp.roll takes the end of the list round to the very first entry.
    group = entries >> (BLOCK_BITS + FLAG_BITS)
    border = jnp.concatenate([group[1:] != group[:-1], jnp.ones(1, bool)])
    first = jnp.where(jnp.roll(border, 1), FIRST, 0)
    last = jnp.where(border, LAST, 0)
    return BlockList(entries | first | last, count)


def entry_starts(listed: BlockList, rows: int, q_blocks: int) -> jax.Array:
    """int32 [rows * q_blocks + 1]: where in the list the entries of each query block start.

    Those of query block n (counted over all rows) are entries[starts[n] : starts[n + 1]]. In the
    example at the head of this file: 0 1 3 5.
    """
    own = row_of(listed.entries) * q_blocks + q_block_of(listed.entries)
    own = jnp.where(listed.entries == UNUSED, rows * q_blocks, own)
    return jnp.searchsorted(own, jnp.arange(rows * q_blocks + 1)).astype(jnp.int32)


def q_blocks_of_keys(bounds: Bounds, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """(first, stop), int32 [B, key blocks]: the query blocks that see some key of each block.

    Each key is seen by one interval of queries; the answer is the smallest interval of query blocks
    that covers those of all keys of the block. It is empty (first = stop = 0) for keys that nothing
    sees. In the example: [0, 3), [1, 2), [2, 3).
    """
    least_start, largest_end = _per_key_block(bounds, kv_block)
    seen = least_start < largest_end
    first = jnp.where(seen, least_start // q_block, 0)
    return first, jnp.where(seen, -(-largest_end // q_block), 0)


def _per_block(bounds: Bounds, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """(some pair is visible, every pair is), each bool [B, query blocks, key blocks].

    Some: the union of the keys' intervals, taken as if it had no gap, meets the block's queries. In
    trees and segments it has none: a key that is seen sees itself, so its interval holds its index.
    Every: the intersection of the intervals holds all of the block's queries.
    """
    rows, length = bounds.end.shape
    start, end = (x.reshape(rows, 1, length // kv_block, kv_block) for x in bounds)
    begin = (np.arange(length // q_block, dtype=np.int32) * q_block)[:, None]
    least_start, largest_end = (x[:, None] for x in _per_key_block(bounds, kv_block))
    visible = (least_start < begin + q_block) & (largest_end > begin)
    full = (jnp.max(start, axis=-1) <= begin) & (jnp.min(end, axis=-1) >= begin + q_block)
    return visible, full


def _per_key_block(bounds: Bounds, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """(least start, largest end) of the keys of each block that are seen by any query, int32
    [B, key blocks]; (row's length, 0) for a block of which none is seen."""
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


def has_flag(entry: jax.Array, flag: int) -> jax.Array:
    """Whether an entry carries FIRST, LAST or FULL."""
    return (entry & flag) != 0
