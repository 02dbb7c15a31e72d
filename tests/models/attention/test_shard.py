"""Attention inside whole rows, the tiles of a picture, against the plain form."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.attention import block_list, shard, tpu_sizes
from srpo_jax.models.attention.dispatch import Attend, row_attention
from tests.support.masks import errors, random_qkv, result_and_grads

KERNELS = ["block", "pallas_tpu_interpret"]
SHOWN = np.array([True, False, True])


def plain(q, k, v, shown):
    """Every score of a tile; 0 for a tile that is not shown."""
    scores = jnp.einsum("nphd,nqhd->nhpq", q, k) * q.shape[-1] ** -0.5
    out = jnp.einsum("nhpq,nqhd->nphd", jax.nn.softmax(scores, axis=-1), v)
    return jnp.where(shown[:, None, None, None], out, 0)


def compare(impl, tokens, size, dtype=jnp.float32):
    arrays = random_qkv(len(SHOWN), tokens, 2, 2, size, dtype=dtype)
    shown = jnp.asarray(SHOWN)
    got = result_and_grads(lambda *a: row_attention(*a, impl=impl), *arrays, shown)
    assert all(x.dtype == dtype for x in got)
    assert all(not np.asarray(x[~SHOWN], np.float32).any() for x in got)
    wide = [x.astype(jnp.float32) for x in arrays]
    return errors(got, result_and_grads(plain, *wide, shown))


@pytest.mark.parametrize(
    "impl, tokens, size",
    [
        ("auto", 577, 64),
        ("auto", 729, 72),
        ("auto", 1025, 88),
        ("xla", 1025, 64),  # by chunks of queries
        ("pallas_tpu_interpret", 300, 64),  # one block
        ("pallas_tpu_interpret", 729, 80),  # two by two
    ],
)
def test_tiles_equal_the_plain_form(impl, tokens, size):
    """The tiles of the released towers, values and gradients; tiles of padding give 0."""
    found = compare(impl, tokens, size)
    assert max(found.values()) < 1e-5, found


def test_bfloat16_tiles_sum_in_float32():
    """Errors of bfloat16's rounding (2^-8); test_block_sparse.py says so of the kernel."""
    found = compare("block", 300, 64, jnp.bfloat16)
    assert max(found.values()) < 0.012, found


@pytest.mark.parametrize("impl", KERNELS)
def test_no_scores_of_a_whole_tile_are_kept(impl):
    """Forward and backward, no array of the program is larger than q."""
    q = jax.ShapeDtypeStruct((3, 1025, 2, 64), jnp.float32)
    shown = jax.ShapeDtypeStruct((3,), jnp.bool_)

    def loss(q, k, v, shown):
        return row_attention(q, k, v, shown, impl=impl).sum()

    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, q, q, shown))
    shapes = [[int(n) for n in s.split(",")] for s in re.findall(r"[a-z]\d+\[([\d,]+)\]", program)]
    padded = 1152 / 1025
    assert max(math.prod(shape) for shape in shapes) <= padded * math.prod(q.shape)
    assert not any(min(shape[-2:]) > 1024 for shape in shapes if len(shape) > 1)


def test_padding_tiles_cost_next_to_nothing():
    """One entry per query block, to write the zeros, and not one per block of scores."""
    seg = np.repeat(np.where(SHOWN, 0, -1)[:, None], 640, axis=1)

    @jax.jit
    def count(seg):
        return block_list.list_blocks(block_list.segment_bounds(seg), 128, 128, causal=False).count

    assert int(count(seg)) == 2 * 5 * 5 + 5


def test_how_many_tiles_are_shown_is_no_other_program():
    """The budget of a row is fixed: one compilation serves every picture size."""
    q, k, v, _ = random_qkv(4, 300, 2, 2, 8)
    run = jax.jit(lambda shown: Attend().rows(q, k, v, shown))
    for tiles in (0, 1, 4):
        shown = jnp.arange(4) < tiles
        np.testing.assert_allclose(run(shown), plain(q, k, v, shown), atol=1e-5)
    assert run._cache_size() == 1


def test_more_rows_than_a_block_list_holds(monkeypatch):
    """64 prompts of 17 tiles are 1088 rows on one device, and a list holds 1024."""
    monkeypatch.setattr(shard, "MOST_ROWS", 2)
    *arrays, _ = random_qkv(5, 8, 1, 1, 4)
    shown = jnp.arange(5) % 3 > 0
    got = jax.jit(lambda *a: row_attention(*a, impl="block"))(*arrays, shown)
    np.testing.assert_allclose(got, plain(*arrays, shown), atol=1e-5)


@pytest.mark.parametrize("kind", [*tpu_sizes.SIZES, "unknown"])
def test_every_tile_fits_the_core(kind):
    """No released tile is refused for VMEM, in float32 either."""
    for tokens in (577, 729, 1024, 1025):
        sizes = tpu_sizes.row_sizes_for(kind, tokens)
        padded = -(-tokens // sizes.q) * sizes.q
        assert padded < 1.34 * tokens
        q = jax.ShapeDtypeStruct((13, 16, 1, padded, 88), jnp.float32)
        tpu_sizes.compiler_params(q, sizes, whole_rows=2)
