"""Reasoning trees as data: what is refused, and what counts as a duplicate."""

import dataclasses

import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.pack.tree import Branch, remove_duplicates
from tests.support.tree_cases import example_tree


def _branch(at, tokens, safe):
    return Branch(at, np.asarray(tokens, np.int32), safe)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pieces": ()}, "reference path"),
        ({"pieces": (np.zeros(0, np.int32), np.ones(2, np.int32))}, "empty piece"),
        ({"branches": (_branch(3, [1], True),)}, "branch 0 starts after 3 steps"),
        ({"branches": (_branch(-1, [1], True),)}, "branch 0"),
        ({"branches": (_branch(0, [], True),)}, "branch 0 has no tokens"),
    ],
)
def test_a_malformed_tree_is_refused_by_name(change, message):
    """A tree with an empty path, an empty branch or a branch after the reply names itself."""
    with pytest.raises(UserError, match=f"example 0.*{message}"):
        dataclasses.replace(example_tree(), **change)


def test_prefix_and_reference_are_token_concatenations():
    """prefix(i) is the first i pieces; the reference path is all of them."""
    tree = example_tree(steps=2, step=3)
    assert tree.prefix(0).size == 0
    np.testing.assert_array_equal(tree.prefix(2), tree.reference[:6])
    assert tree.reference.dtype == tree.prefix(0).dtype == np.int32


def test_duplicates_are_removed_and_contradictions_too():
    """Same point and tokens: one stays; judged both ways: none stays; another point: both stay."""
    tree = dataclasses.replace(
        example_tree(),
        branches=(
            _branch(0, [1, 2], True),
            _branch(0, [1, 2], True),
            _branch(1, [1, 2], True),
            _branch(0, [3], True),
            _branch(0, [3], False),
            _branch(0, [4], False),
        ),
    )
    left = [(b.at, list(b.tokens), b.safe) for b in remove_duplicates(tree).branches]
    assert left == [(0, [1, 2], True), (1, [1, 2], True), (0, [4], False)]
