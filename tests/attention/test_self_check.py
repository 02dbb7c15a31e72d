"""A kernel that computes something else is refused before a run relies on it."""

import jax.numpy as jnp
import numpy as np
import pytest

from masks import tree_mask
from srpo_jax.attention import blocks, self_check
from srpo_jax.errors import UserError

ARGUMENTS = (2, 1, 16, jnp.bfloat16)


def test_its_row_holds_branches_two_trees_and_padding():
    """Queries see their own path only, and every kind of block is there."""
    seen = tree_mask(self_check._tree())
    assert seen[399].sum() == 400  # the trunk
    assert [seen[400 + 130 * n + 129].sum() for n in range(3)] == [530, 420, 330]
    assert not seen[530, 400:530].any() and seen[530, :290].all()
    assert seen[939].sum() == 150 and seen[1023].sum() == 1


@pytest.mark.parametrize("impl", ["pallas_gpu_interpret", "pallas_tpu_interpret"])
def test_right_kernels_pass(impl):
    """With errors of bfloat16's rounding, far from the limit."""
    errors = self_check.self_check(impl, *ARGUMENTS)
    assert max(errors.values()) < self_check.MOST / 4, errors


def test_plain_code_is_not_checked():
    """Where auto is no kernel, nothing is compiled."""
    assert self_check.self_check("auto", *ARGUMENTS) is None


def test_one_key_too_many_is_refused(monkeypatch):
    """Branches that see the first token of the branch after them."""
    right = blocks.tree_bounds

    def wrong(subtree_end):
        start, end = right(subtree_end)
        return blocks.Bounds(start, jnp.where(start % 130 == 10, end + 1, end))

    monkeypatch.setattr(blocks, "tree_bounds", wrong)
    with pytest.raises(UserError, match="something else than 'xla'.*model.attention=block"):
        self_check.self_check("pallas_gpu_interpret", *ARGUMENTS)


def test_no_number_is_refused(monkeypatch):
    """NaN compares as smaller than nothing."""

    def broken(q, k, v, ends, impl):
        return v + k + q * (1.0 if impl == "xla" else np.nan)

    monkeypatch.setattr(self_check, "tree_attention", broken)
    with pytest.raises(UserError, match="nan"):
        self_check.self_check("pallas_gpu_interpret", 1, 1, 16, jnp.float32)
