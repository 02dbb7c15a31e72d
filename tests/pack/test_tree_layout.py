"""The layout: each token once, every path sees exactly itself, sequences are made of segments."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from srpo_jax.models.inputs import encode_prompt
from srpo_jax.pack.tree import Branch, Tree
from srpo_jax.pack.tree_layout import choose_pairs, common_prefix, layout_tree
from tests.support.tree_cases import CONFIG, example_tree, trees

SWITCHES = [(r, o) for r in ("dataset", "chosen", "none") for o in ("branch", "divergence")]


def _ancestors(layout, index):
    path = []
    while index >= 0:
        path.append(index)
        index = layout.parent[index]
    return path[::-1]


def _paths(tree, pairs, reference):
    """Every laid-out path below the prompt, as token tuples (written from the definition)."""
    used = {k for c, r, _ in pairs for k in (c, r)}
    paths = [
        np.concatenate([tree.prefix(tree.branches[k].at), tree.branches[k].tokens]) for k in used
    ]
    return [tuple(p) for p in paths + ([tree.reference] if reference == "dataset" else [])]


def test_the_example_of_the_docstring():
    """What a newcomer reads at the head of tree_layout.py is what the code does."""
    p, a, b, c, d, e = range(6)
    prompt = encode_prompt([p], [], CONFIG)
    steps, safe, unsafe = ((a, b), (c,)), (a, d), (e,)
    branches = (Branch(0, np.asarray(safe), True), Branch(0, np.asarray(unsafe), False))
    tree = Tree("example", prompt, tuple(map(np.asarray, steps)), branches)
    layout = layout_tree(tree, choose_pairs(tree))
    assert layout.tokens.tolist() == [p, a, b, c, d, e]
    assert layout.parent.tolist() == [-1, 0, 1, 2, 1, 0]
    assert layout.subtree_end.tolist() == [6, 5, 4, 4, 5, 6]
    assert layout.positions[0].tolist() == [0, 1, 2, 3, 2, 1]
    assert layout.sequences == ((0, 1), (0, 2), (3,))


@pytest.mark.parametrize("reference, odds_from", SWITCHES)
@settings(deadline=None, max_examples=40)
@given(tree=trees())
def test_each_token_stands_once_and_sees_exactly_its_path(reference, odds_from, tree):
    """Tokens = distinct path prefixes; the mask of every token = its ancestors; depth positions."""
    pairs = choose_pairs(tree, odds_from=odds_from)
    layout = layout_tree(tree, pairs, reference=reference, odds_from=odds_from)
    n, t = len(tree.prompt.tokens), len(layout.tokens)
    distinct = {p[:k] for p in _paths(tree, pairs, reference) for k in range(1, len(p) + 1)}
    found = set()
    for i in range(t):
        path = _ancestors(layout, i)
        visible = [j for j in range(i + 1) if i < layout.subtree_end[j]]
        assert visible == path
        if i >= n:
            found.add(tuple(layout.tokens[path[n:]]))
            depth = tree.prompt.next_position + len(path) - n - 1
            assert (layout.positions[:, i] == depth).all()
    assert found == distinct and t == n + len(distinct)
    np.testing.assert_array_equal(layout.tokens[:n], tree.prompt.tokens)
    np.testing.assert_array_equal(layout.positions[:, :n], tree.prompt.positions)
    np.testing.assert_array_equal(layout.image_index[:n], tree.prompt.image_index)
    assert (layout.image_index[n:] == -1).all() and (layout.subtree_end[:n] == t).all()


@pytest.mark.parametrize("reference, odds_from", SWITCHES)
@settings(deadline=None, max_examples=40)
@given(tree=trees())
def test_sequences_are_the_formulas_own_tokens(reference, odds_from, tree):
    """The targets of a sequence, in order, are its own tokens on its own path; weights add up."""
    pairs = choose_pairs(tree, odds_from=odds_from)
    layout = layout_tree(tree, pairs, reference=reference, odds_from=odds_from)
    n = len(tree.prompt.tokens)

    def own(sequence):
        index = layout.target_pos[np.isin(layout.target_segment, layout.sequences[sequence])]
        assert len(index) == layout.seq_len[sequence]
        path = _ancestors(layout, index[-1])
        assert list(path[-len(index) :]) == list(index)  # a run at the end of one path
        return list(layout.tokens[path[n:]]), len(index)

    assert len(layout.pair_weight) == len(pairs)
    for r, (chosen, rejected, weight) in enumerate(pairs):
        sides = (
            (tree.branches[chosen], layout.pair_chosen[r]),
            (tree.branches[rejected], layout.pair_rejected[r]),
        )
        skip = common_prefix(sides[0][0].tokens, sides[1][0].tokens)
        for branch, sequence in sides:
            path, length = own(sequence)
            assert path == [*tree.prefix(branch.at), *branch.tokens]
            assert length == len(branch.tokens) - (skip if odds_from == "divergence" else 0)
        assert layout.pair_weight[r] == weight
    counted = np.flatnonzero(layout.ref_weight)
    if reference == "dataset":
        assert len(counted) == 1 and layout.ref_weight[counted[0]] == 1
        assert own(counted[0]) == (list(tree.reference), len(tree.reference))
    elif reference == "chosen" and pairs:
        assert layout.ref_weight.sum() == pytest.approx(1)
        for sequence in counted:
            path, length = own(sequence)
            assert length == len(path)
    else:
        assert not len(counted)


@settings(deadline=None, max_examples=40)
@given(tree=trees())
def test_segments_partition_the_targets(tree):
    """Each target is in one segment; targets of one segment are in the same sequences; maximal."""
    layout = layout_tree(tree, choose_pairs(tree))
    sets = [
        frozenset(q for q, s in enumerate(layout.sequences) if segment in s)
        for segment in layout.target_segment
    ]
    assert all(sets)  # a target belongs to a sequence
    for a, b, sa, sb in zip(layout.target_segment, layout.target_segment[1:], sets, sets[1:]):
        assert b - a in (0, 1) and (b == a) == (sa == sb)
    np.testing.assert_array_equal(layout.target_parent, layout.parent[layout.target_pos])


def test_branch_that_begins_like_the_reference_shares_its_tokens():
    """Known answer: the trie splits inside a branch; the reference, the largest child, is first."""
    tree = dataclasses.replace(
        example_tree(grids=()),
        pieces=tuple(np.asarray(p, np.int32) for p in ([1, 2], [3, 4, 5])),
        branches=(
            Branch(0, np.asarray([1, 2, 3, 9], np.int32), True),
            Branch(0, np.asarray([7], np.int32), False),
            Branch(1, np.asarray([8], np.int32), True),
        ),
    )
    layout = layout_tree(tree, [(0, 1, 1.0)])
    n = len(tree.prompt.tokens)
    assert list(layout.tokens[n:]) == [1, 2, 3, 4, 5, 9, 7]  # branch 2 has no pair: not laid out
    assert list(layout.parent[n:] - n) == [-1, 0, 1, 2, 3, 2, -1]
    assert list(layout.subtree_end[n:] - n) == [6, 6, 6, 5, 5, 6, 7]
    assert [layout.sequences[i] for i in (0, layout.pair_chosen[0], layout.pair_rejected[0])] == [
        (0, 1),
        (0, 2),
        (3,),
    ]
    assert list(layout.target_segment) == [0, 0, 0, 1, 1, 2, 3]


def test_a_branch_that_is_the_reference_path_is_the_same_sequence():
    """A sequence stands once, whatever it is wanted for: the reference path and a pair's side."""
    tree = dataclasses.replace(
        example_tree(grids=()),
        pieces=tuple(np.asarray(p, np.int32) for p in ([1, 2], [3])),
        branches=(
            Branch(0, np.asarray([1, 2, 3], np.int32), True),
            Branch(0, np.asarray([7], np.int32), False),
        ),
    )
    layout = layout_tree(tree, choose_pairs(tree))
    assert layout.sequences == ((0,), (1,)) and layout.ref_weight.tolist() == [1, 0]
    assert (layout.pair_chosen.tolist(), layout.pair_rejected.tolist()) == ([0], [1])
    for wrong in ({"reference": "some"}, {"odds_from": "begin"}):
        with pytest.raises(ValueError, match="not in"):
            layout_tree(tree, [], **wrong)


def test_unpaired_branches_and_the_unused_reference_cost_nothing():
    """Without L_ref and with pairs at point 1 only, the row ends with what those pairs need."""
    tree = example_tree(steps=3, branches=4)
    pairs = [p for p in choose_pairs(tree) if tree.branches[p[0]].at == 1][:1]
    layout = layout_tree(tree, pairs, reference="none")
    assert len(layout.tokens) == len(tree.prompt.tokens) + len(tree.pieces[0]) + 2 * 6
    assert len(layout.target_pos) == 2 * 6
    assert layout_tree(tree, [], reference="none").sizes.targets == 0


def test_largest_subtree_comes_first():
    """At every branching the children stand in order of falling subtree size."""
    layout = layout_tree(example_tree(steps=4), choose_pairs(example_tree(steps=4)))
    size = layout.subtree_end - np.arange(len(layout.tokens))
    for parent in np.unique(layout.parent):
        children = np.flatnonzero(layout.parent == parent)
        assert (np.diff(size[children]) <= 0).all()
