"""Attention in plain XLA against brute force, and the mask proved through gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.attention import xla
from srpo_jax.models.attention.dispatch import segment_attention, tree_attention
from srpo_jax.models.attention.xla import OWN_BLOCK, branch_attention, own_length, write_own
from tests.support import masks
from tests.support.masks import segment_mask, tree_mask

# Two trees in one row and one padding token. Tree one: 0-1-2, branch {3,4}, branch {5}, then 6;
# below 2 hang 3, 5 and 6. Tree two: 7-8 with the leaves 9 and 10. 11 is padding.
SUBTREE_END = np.array([7, 7, 7, 5, 5, 6, 7, 11, 11, 10, 11, 12], np.int32)


def random_qkv(*shape, seed=0):
    return masks.random_qkv(*shape, seed=seed)[:3]


def brute_force(q, k, v, mask):
    """mask [B, T, T]; float64, one query and head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(*q.shape[:3]):
        see = np.flatnonzero(mask[b, i])
        if not len(see):
            continue
        scores = k[b, see, h // group] @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, see, h // group] / weights.sum()
    return out


def test_tree_attention_is_the_stated_formula():
    """One int per key is the whole mask: causality, branches, the border between packed trees."""
    q, k, v = random_qkv(2, 12, 4, 2, 8)
    ends = np.stack([SUBTREE_END, np.full(12, 12, np.int32)])  # row two is plain causal
    expected = brute_force(q, k, v, np.stack([tree_mask(e) for e in ends]))
    assert np.array_equal(tree_mask(ends[1]), np.tri(12, dtype=bool))
    np.testing.assert_allclose(tree_attention(q, k, v, jnp.asarray(ends)), expected, atol=1e-5)


def test_segment_attention_is_the_stated_formula():
    """A patch sees exactly the patches of its own segment; padding sees nothing and gives 0."""
    q, k, v = random_qkv(2, 9, 2, 2, 8)
    seg = np.array([[0, 0, 1, 1, 1, 2, 5, -1, -1], [3] * 9], np.int32)
    expected = brute_force(q, k, v, segment_mask(seg))
    np.testing.assert_allclose(segment_attention(q, k, v, jnp.asarray(seg)), expected, atol=1e-5)


def test_gradient_is_zero_exactly_where_the_mask_says_invisible():
    """d out[i] / d key[j] and d value[j]: exactly 0 when j is invisible to i, else not 0."""
    q, k, v = random_qkv(1, 12, 4, 2, 8)
    ends = jnp.asarray(SUBTREE_END[None])

    def projected(k, v):  # [T]: one random number per query
        out = tree_attention(q, k, v, ends)
        return jnp.einsum("thd,thd->t", out[0], random_qkv(1, 12, 4, 1, 8, seed=1)[0][0])

    expected = tree_mask(SUBTREE_END)
    jacobians = jax.jit(jax.jacrev(projected, (0, 1)))(k, v)
    grad_k, grad_v = (np.abs(np.asarray(g)).sum((1, 3, 4)) for g in jacobians)
    assert np.array_equal(grad_v != 0, expected)
    alone = expected.sum(1) == 1  # softmax over one key does not depend on that key
    assert np.array_equal(grad_k != 0, expected & ~alone[:, None])


@pytest.mark.parametrize("length", [32, 37])
@pytest.mark.parametrize("kind", ["tree", "segment"])
def test_chunks_equal_the_dense_path(monkeypatch, kind, length):
    """Long rows give the values and gradients of short ones, also when chunks do not divide."""
    q, k, v = random_qkv(2, length, 4, 2, 8)
    if kind == "tree":
        ends = np.minimum(np.arange(length) + 1 + np.arange(length)[::-1] // 2, length)
        function, ids = tree_attention, jnp.asarray(np.stack([ends, ends]), jnp.int32)
    else:
        function, ids = segment_attention, jnp.asarray(np.arange(2 * length).reshape(2, -1) // 7)

    def value_and_grads():
        def loss(q, k, v):
            out = function(q, k, v, ids)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    dense = value_and_grads()
    monkeypatch.setattr(xla, "DENSE_LIMIT", 16)
    monkeypatch.setattr(xla, "CHUNK", 8)
    for a, b in zip(jax.tree.leaves(value_and_grads()), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_long_rows_never_hold_a_square():
    """Forward and backward of a 2048-token row have no array of shape [..., 2048, 2048]."""
    q = jax.ShapeDtypeStruct((1, 2048, 4, 8), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 2048, 2, 8), jnp.float32)
    ends = jax.ShapeDtypeStruct((1, 2048), jnp.int32)

    def loss(q, k, v, ends):
        return tree_attention(q, k, v, ends).sum() + segment_attention(q, k, v, ends).sum()

    assert "2048,2048]" not in str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k, ends))


@pytest.mark.parametrize("steps", [4, 2 * OWN_BLOCK])
def test_branch_attention_is_attention_over_prefix_and_own_tokens(steps):
    """A branch sees shared[:shared_len], own[:t] and its newest token, of one layer; what lies
    behind them has no effect. Less than one block of own tokens, or several."""
    rows, branches, length = 2, 3, 7
    q, shared_k, shared_v = random_qkv(rows, length, 4, 2, 8)
    q = q[:, :branches]
    rng = np.random.default_rng(3)
    own = rng.standard_normal((2, 3, rows, branches, 2, steps, 8)).astype(np.float32)  # 3 layers
    new = rng.standard_normal((2, rows, branches, 2, 8)).astype(np.float32)
    lengths = np.array([[7, 3, 0], [1, 5, 7]], np.int32)
    t = np.array([[0, 2, steps - 1], [1, 0, steps - 2]], np.int32)
    shared = [jnp.swapaxes(x, 1, 2) for x in (shared_k, shared_v)]
    got = branch_attention(q, *shared, lengths, *own, *new, jnp.int32(1), jnp.asarray(t))
    for b, r in np.ndindex(rows, branches):
        keys, values = (
            np.concatenate(
                [np.asarray(s)[b, : lengths[b, r]], o[1, b, r, :, : t[b, r]].swapaxes(0, 1), [n]]
            )[None]
            for s, o, n in zip((shared_k, shared_v), own, new[:, b, r])
        )
        mask = np.ones((1, 1, keys.shape[1]), bool)
        expected = brute_force(q[b : b + 1, r : r + 1], keys, values, mask)[0, 0]
        np.testing.assert_allclose(got[b, r], expected, atol=1e-5)


def test_own_caches_are_whole_blocks():
    """A last block of another size would be read beyond the cache."""
    one = jnp.zeros((1, 1, 1, 8))
    own = jnp.zeros((1, 1, 1, 1, OWN_BLOCK + 36, 8))
    shared = jnp.zeros((1, 1, 3, 8))
    at = jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match=f"{OWN_BLOCK + 36} tokens is no whole blocks"):
        branch_attention(one, shared, shared, at, own, own, one, one, jnp.int32(0), at)


def test_new_keys_are_written_at_each_branch_s_own_place():
    """And nowhere else."""
    rng = np.random.default_rng(1)
    own = rng.standard_normal((3, 2, 4, 2, 5, 8)).astype(np.float32)
    new = rng.standard_normal((3, 2, 4, 2, 8)).astype(np.float32)
    t = rng.integers(0, 5, (2, 4))
    expected = own.copy()
    for b, r in np.ndindex(2, 4):
        expected[:, b, r, :, t[b, r]] = new[:, b, r]
    np.testing.assert_array_equal(write_own(jnp.asarray(own), jnp.asarray(new), t), expected)


def test_a_branch_s_cache_is_whole_blocks_and_has_room_for_all_but_its_last_token():
    for new_tokens in (1, 2, 65, 66, 129, 512):
        length = own_length(new_tokens)
        assert length % OWN_BLOCK == 0 and new_tokens - 1 <= length < new_tokens + OWN_BLOCK


def blocks_of(monkeypatch, dtype):
    """(branch_attention of a row of four branches as a function of t [4], its arguments), over own
    keys in blocks of 8."""
    monkeypatch.setattr(xla, "OWN_BLOCK", 8)
    q, *shared = (jnp.asarray(x, dtype) for x in random_qkv(1, 4, 4, 2, 8))
    shared = [s.swapaxes(1, 2) for s in shared]
    rng = np.random.default_rng(4)
    own = jnp.asarray(rng.standard_normal((2, 1, 1, 4, 2, 24, 8)), dtype)
    new = jnp.asarray(rng.standard_normal((2, 1, 4, 2, 8)), dtype)
    lengths = np.array([[4, 3, 0, 1]], np.int32)

    @jax.jit
    def at(t):
        return branch_attention(q, *shared, lengths, *own, *new, jnp.int32(0), t[None])[0]

    return at, (q, shared, own, new, lengths)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_branch_is_the_same_to_the_bit_whatever_others_have(monkeypatch, dtype):
    """A branch beside short ones and beside long ones, for which further blocks are read: no bit of
    it is another one. Of the first token of its own, of the last of a block and behind it."""
    at, _ = blocks_of(monkeypatch, dtype)
    for r in range(4):
        for t in (0, 7, 8, 12, 15, 16, 20):
            own = [
                np.asarray(at(jnp.full(4, other).at[r].set(t)))[r]
                for other in (0, 7, 8, 15, 16, 20)
            ]
            assert len({array.tobytes() for array in own}) == 1, (r, t)
            assert np.isfinite(np.asarray(own[0], np.float32)).all() and own[0].any()


def test_blocks_of_own_tokens_are_attention_too(monkeypatch):
    """Each token of its own is seen once, and the newest."""
    at, (q, shared, own, new, lengths) = blocks_of(monkeypatch, jnp.float32)
    for t in ([0, 7, 8, 20], [20, 15, 16, 0], [12, 20, 19, 13]):
        got = at(jnp.asarray(t))
        for r in range(4):
            heads = [
                np.concatenate(
                    [s[0, :, : lengths[0, r]], o[0, 0, r, :, : t[r]], n[0, r, :, None]], 1
                )
                for s, o, n in zip(shared, own, new)
            ]
            heads = [part.swapaxes(0, 1)[None] for part in heads]
            mask = np.ones((1, 1, heads[0].shape[1]), bool)
            expected = brute_force(q[:, r : r + 1], *heads, mask)[0, 0]
            np.testing.assert_allclose(got[r], expected, atol=1e-5)


def test_a_row_that_sees_nothing_is_finite():
    """A malformed subtree_end may give a meaningless row but never a NaN, forward or backward."""
    q, k, v = random_qkv(1, 4, 2, 2, 8)
    ends = jnp.zeros((1, 4), jnp.int32)
    loss = jax.value_and_grad(lambda *qkv: tree_attention(*qkv, ends).sum(), (0, 1, 2))
    value, grads = jax.jit(loss)(q, k, v)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
