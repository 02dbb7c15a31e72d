"""Measuring a tree without its tokens gives what laying it out gives."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.pack.skeleton import Measure, measure, skeleton_of
from srpo_jax.pack.tree import remove_duplicates
from srpo_jax.pack.tree_layout import (
    BRANCH_POINTS,
    ODDS_FROM,
    PAIRINGS,
    REFERENCES,
    choose_pairs,
    layout_tree,
    teach,
    visible_pairs,
)
from tests.support.tree_cases import trees


@given(
    trees(steps=(1, 4), branches=5, length=6),
    st.sampled_from(PAIRINGS),
    st.sampled_from(BRANCH_POINTS),
    st.sampled_from(REFERENCES),
    st.sampled_from(ODDS_FROM),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from((0.0, 0.5)),
)
def test_a_measure_is_of_the_layout(
    tree, pairing, points, reference, odds_from, counted, epoch, coef
):
    """Every size that a row has a budget for, the tokens of L_ref and the pairs of tokens that see
    each other: the same numbers, whatever is paired, taught and counted; and the pairs are the
    same."""
    tree = remove_duplicates(tree)
    skeleton = teach(skeleton_of(tree), coef)
    tree = teach(tree, coef)
    how = {"pairing": pairing, "branch_points": points, "max_pairs": 3, "epoch": epoch}
    pairs = choose_pairs(tree, odds_from=odds_from, **how)
    assert choose_pairs(skeleton, odds_from=odds_from, **how) == pairs
    options = {"reference": reference, "odds_from": odds_from}
    part = dataclasses.replace(tree, count_reference=counted)
    layout = layout_tree(part, pairs, **options)
    expected = Measure(layout.sizes, layout.ref_tokens, visible_pairs(layout.subtree_end))
    found = measure(skeleton, pairs, count_reference=counted, **options)
    assert found[::2] == expected[::2]
    assert found.ref_tokens == pytest.approx(expected.ref_tokens, rel=1e-12)


@given(trees(steps=(1, 4), branches=5, length=6))
def test_what_is_checked_of_a_tree(tree):
    """The highest token id, and the longest path that any of its tokens stands on."""
    tree = remove_duplicates(tree)
    parts = [*tree.pieces, *(branch.tokens for branch in tree.branches)]
    assert skeleton_of(tree).largest == max(int(part.max()) for part in parts)
    ends = [len(tree.prefix(branch.at)) + len(branch.tokens) for branch in tree.branches]
    assert skeleton_of(tree).longest() == max([len(tree.reference), *ends])
