"""The block list against the dense mask: what it skips, what it calls fully visible, its order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.errors import UserError
from srpo_jax.models.attention import block_list
from tests.support.masks import segment_mask, tree_mask, trees_from_pops

LENGTH = 48
SIZES = [(8, 8), (16, 8), (8, 16)]  # queries, keys


@functools.cache
def compiled(q_block, kv_block, causal):
    return jax.jit(
        lambda *bounds: block_list.list_blocks(
            block_list.Bounds(*bounds), q_block, kv_block, causal=causal
        )
    )


def listed(bounds, q_block, kv_block, causal=True):
    """[(row, query block, key block, first, last, full)] of the used entries."""
    entries, count = compiled(q_block, kv_block, causal)(*bounds)
    assert np.all(np.asarray(entries[count:]) | 7 == block_list.UNUSED)
    fields = (block_list.row_of, block_list.q_block_of, block_list.kv_block_of)
    flags = (block_list.FIRST, block_list.LAST, block_list.FULL)
    used = np.asarray(entries[:count])
    columns = [f(used) for f in fields] + [block_list.has_flag(used, flag) for flag in flags]
    return [tuple(int(x) for x in entry) for entry in zip(*columns, strict=True)]


def check(mask, bounds, q_block, kv_block, causal=True, exact=True):
    """Every promise of `list_blocks`, for mask bool [B, T, T]."""
    entries = listed(bounds, q_block, kv_block, causal)
    assert entries == sorted(entries) and len({e[:3] for e in entries}) == len(entries)
    rows, length, _ = mask.shape
    tiles = mask.reshape(rows, length // q_block, q_block, length // kv_block, kv_block)
    seen, full = tiles.any((2, 4)), tiles.all((2, 4))
    where = {entry[:3]: entry[3:] for entry in entries}
    for place in np.ndindex(*seen.shape):
        if place not in where:
            assert not seen[place], f"{place} is skipped but has a visible pair"
            continue
        filler = place[2] == 0 and not seen[place[:2]].any()
        assert seen[place] or filler or not exact, f"{place} is listed for nothing"
        assert full[place] if where[place][2] else not (exact and full[place]), place
    for group in np.ndindex(*seen.shape[:2]):
        own = [e for e in entries if e[:2] == group]
        assert [e[3] for e in own] == [1] + [0] * (len(own) - 1), "FIRST is the first only"
        assert [e[4] for e in own] == [0] * (len(own) - 1) + [1], "LAST is the last only"


def test_the_example_of_the_docstring():
    """What a newcomer reads at the head of block_list.py is what the code does."""
    bounds = block_list.tree_bounds(jnp.asarray([[6, 5, 4, 4, 5, 6]], jnp.int32))
    entries = [(*entry[1:3], entry[5]) for entry in listed(bounds, 2, 2)]
    assert entries == [(0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (2, 2, 0)]
    starts = block_list.entry_starts(block_list.list_blocks(bounds, 2, 2, causal=True), 1, 3)
    assert starts.tolist() == [0, 1, 3, 5]
    first, stop = block_list.q_blocks_of_keys(bounds, 2, 2)
    assert (first.tolist(), stop.tolist()) == ([[0, 1, 2]], [[3, 2, 3]])


pops = st.lists(st.sampled_from([0] * 12 + [1, 2, 7, 60]), min_size=LENGTH, max_size=LENGTH)


@settings(max_examples=60, deadline=None)
@given(st.tuples(pops, pops), st.integers(0, 20), st.sampled_from(SIZES))
def test_list_is_exact_for_trees(rows, padding, sizes):
    """Skipped blocks have no visible pair, listed ones have, FULL ones have no masked pair."""
    ends = np.stack([trees_from_pops(row) for row in rows])
    own = np.arange(LENGTH) + 1
    ends[1] = np.where(own > LENGTH - padding, own, np.minimum(ends[1], LENGTH - padding))
    check(tree_mask(ends), block_list.tree_bounds(jnp.asarray(ends)), *sizes)


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(0, LENGTH), st.sampled_from(SIZES))
def test_list_is_exact_for_segments(lengths, padding, sizes):
    """Windows, frames or tiles, and padding at the end, which makes no work."""
    seg = np.repeat(np.arange(len(lengths)), lengths)[: LENGTH - padding]
    seg = np.pad(seg, (0, LENGTH - len(seg)), constant_values=-1).astype(np.int32)[None]
    bounds = block_list.segment_bounds(jnp.asarray(seg))
    i = np.arange(LENGTH)[:, None]
    start, end = (np.asarray(x)[:, None, :] for x in bounds)
    assert np.array_equal((start <= i) & (i < end), segment_mask(seg))
    check(segment_mask(seg), bounds, *sizes, causal=False)


ints = st.lists(st.integers(0, LENGTH), min_size=LENGTH, max_size=LENGTH)


@settings(max_examples=60, deadline=None)
@given(ints, ints, st.sampled_from(SIZES))
def test_list_is_safe_for_any_bounds(start, end, sizes):
    """Nothing visible is skipped and nothing masked is called full, whatever the ints are."""
    bounds = block_list.Bounds(*(jnp.asarray([x], jnp.int32) for x in (start, end)))
    i = np.arange(LENGTH)[:, None]
    mask = (np.asarray(start) <= i) & (i < np.asarray(end))
    check(mask[None], bounds, *sizes, causal=False, exact=False)


def test_keys_that_fill_the_last_block_are_seen_by_nothing():
    """pad_bounds: also under a query that is filling itself."""
    ends = jnp.asarray(trees_from_pops([0] * 13))[None]
    bounds = block_list.pad_bounds(block_list.tree_bounds(ends), 16)
    assert listed(bounds, 8, 8) == [(0, 0, 0, 1, 1, 0), (0, 1, 0, 1, 0, 0), (0, 1, 1, 0, 1, 0)]
    assert np.all(np.asarray(bounds.end)[:, 13:] == 0)


def test_one_block_of_keys_is_full_only_for_queries_that_all_exist():
    """A chain of 24 tokens: below the diagonal every pair is visible."""
    bounds = block_list.tree_bounds(jnp.full((1, 24), 24, jnp.int32))
    assert [e[1:3] for e in listed(bounds, 8, 8) if e[5]] == [(1, 0), (2, 0), (2, 1)]


def test_a_list_that_does_not_fit_its_bits_is_refused():
    """513 blocks of queries, or 1025 rows."""
    for rows, blocks_ in ((1, 513), (1025, 1)):
        bounds = block_list.tree_bounds(jnp.zeros((rows, 8 * blocks_), jnp.int32))
        with pytest.raises(UserError, match="can be listed"):
            block_list.list_blocks(bounds, 8, 8, causal=True)
