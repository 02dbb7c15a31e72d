"""A kernel that computes something else is refused before a run relies on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.attention import block_list, self_check
from tests.support.masks import tree_mask

SIZES = (2, 16, 8)  # query heads per kv head, head size, head size of the pictures' tower


def test_its_row_holds_branches_two_trees_and_padding():
    """Queries see their own path only, and every kind of block is there."""
    seen = tree_mask(self_check._tree())
    assert seen[399].sum() == 400  # the trunk
    assert [seen[400 + 130 * n + 129].sum() for n in range(3)] == [530, 420, 330]
    assert not seen[530, 400:530].any() and seen[530, :290].all()
    assert seen[939].sum() == 150 and seen[1023].sum() == 1


@pytest.mark.parametrize(
    "impl, dtype", [("pallas_gpu_interpret", jnp.bfloat16), ("pallas_tpu_interpret", jnp.float32)]
)
def test_right_kernels_pass(impl, dtype):
    """With errors of rounding, well below the limits."""
    errors = self_check.self_check(impl, *SIZES, dtype)
    assert set(errors) == {f"{kind} {n}" for kind in ("tree", "segment") for n in self_check.MOST}
    for name, error in errors.items():
        assert error < self_check.MOST[name.split()[1]] / 1.5, errors


def test_plain_code_is_not_checked():
    """Where auto is no kernel, nothing is compiled."""
    assert self_check.self_check("auto", *SIZES, jnp.bfloat16) == {}


@pytest.mark.parametrize("key, change", [(529, 1), pytest.param(450, -1, marks=pytest.mark.slow)])
def test_one_key_too_many_or_too_few_is_refused(key, change, monkeypatch):
    """A branch sees the last token of the branch before it; a token is not seen by the last of its
    own branch."""
    right = block_list.tree_bounds

    def wrong(subtree_end):
        start, end = right(subtree_end)
        return block_list.Bounds(start, jnp.where(start == key, end + change, end))

    monkeypatch.setattr(block_list, "tree_bounds", wrong)
    with pytest.raises(UserError, match="something else than 'xla'.*model.attention=block"):
        self_check.self_check("pallas_gpu_interpret", *SIZES, jnp.bfloat16)


def test_pictures_are_checked_too(monkeypatch):
    """A frame that sees the first patch of the one after it."""
    right = block_list.segment_bounds

    def wrong(seg):
        start, end = right(seg)
        index = jnp.arange(seg.shape[1])
        return block_list.Bounds(jnp.where(index == 600, 599, start), end)

    monkeypatch.setattr(block_list, "segment_bounds", wrong)
    with pytest.raises(UserError, match="something else than 'xla'"):
        self_check.self_check("pallas_gpu_interpret", *SIZES, jnp.bfloat16)


def test_no_number_is_refused(monkeypatch):
    """NaN is larger than every limit."""

    def broken(q, k, v, ends, impl):
        return v + k + q * (1.0 if impl == "xla" else np.nan)

    monkeypatch.setattr(self_check, "tree_attention", broken)
    with pytest.raises(UserError, match="nan"):
        self_check.self_check("pallas_gpu_interpret", 1, 16, 8, jnp.float32)


def test_a_compiler_that_gives_up_is_told_in_one_line(monkeypatch):
    """Say, for want of shared memory: with the way out, not as a traceback."""

    def broken(*args, impl):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded")

    monkeypatch.setattr(self_check, "tree_attention", broken)
    with pytest.raises(UserError, match="does not compile or run.*Shared memory.*=block"):
        self_check.self_check("pallas_gpu_interpret", 1, 16, 8, jnp.float32)
