"""Pairs: which ones, with what weights, drawn how."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from srpo_jax.pack.tree import Branch
from srpo_jax.pack.tree_layout import choose_pairs
from tests.support.tree_cases import example_tree, trees


def _tree(verdicts):
    """verdicts[at]: a string of S and U, one branch each, all different."""
    count = iter(range(1000))
    branches = tuple(
        Branch(at, np.asarray([1, 10 + next(count)], np.int32), letter == "S")
        for at, letters in enumerate(verdicts)
        for letter in letters
    )
    return dataclasses.replace(example_tree(steps=len(verdicts) - 1), branches=branches)


def test_all_pairs_weigh_points_equally():
    """Mean over the branch points that have a pair of the mean over the point's pairs."""
    tree = _tree(["SSU", "SS", "SUU", ""])
    pairs = choose_pairs(tree, pairing="all")
    assert pairs == [(0, 2, 0.25), (1, 2, 0.25), (5, 6, 0.25), (5, 7, 0.25)]


def test_first_branch_point_only_for_whole_reply_baselines():
    """branch_points="first" contrasts whole paths and nothing else."""
    assert choose_pairs(_tree(["SU", "SU"]), branch_points="first") == [(0, 1, 1.0)]
    assert choose_pairs(_tree(["SS", "SU"]), branch_points="first") == []


def test_rpo_code_pools_points_and_caps_at_max_pairs():
    """RPO's code: at most 8 different pairs of all points together, equal weights."""
    tree = _tree(["SSSUUU", "SU"])
    pairs = choose_pairs(tree, pairing="rpo_code", seed=1, epoch=0)
    assert len({pair[:2] for pair in pairs}) == 8
    assert {pair[2] for pair in pairs} == {1 / 8}
    few = choose_pairs(_tree(["SU", "SUU"]), pairing="rpo_code")
    assert {pair[2] for pair in few} == {1 / 3}


def test_rpo_code_draws_from_all_pairs():
    """By seed and epoch, in the order of the points; over epochs every pair comes up."""
    tree = _tree(["SSUU", "SUU"])
    pool = [pair[:2] for pair in choose_pairs(tree)]

    def draws(**switches):
        pairs = choose_pairs(tree, pairing="rpo_code", max_pairs=2, **switches)
        return [pair[:2] for pair in pairs]

    first = [draws(seed=3, epoch=epoch) for epoch in range(40)]
    assert set(sum(first, [])) == set(pool)
    assert all(len(drawn) == 2 and drawn == sorted(drawn) for drawn in first)
    assert first != [draws(seed=4, epoch=epoch) for epoch in range(40)]
    assert draws(seed=3) == first[0]


def test_switches_that_do_not_exist_are_refused():
    """Each by itself."""
    for wrong in ({"pairing": "some"}, {"branch_points": "last"}):
        with pytest.raises(ValueError, match="not in"):
            choose_pairs(_tree(["SU"]), **wrong)


def test_one_pair_per_point_changes_with_the_epoch_and_nothing_else():
    """Draws are a function of (tree id, seed, epoch); over epochs every pair comes up."""
    tree = _tree(["SSUU", "SU"])
    draws = [choose_pairs(tree, pairing="one", seed=3, epoch=e) for e in range(40)]
    assert draws == [choose_pairs(tree, pairing="one", seed=3, epoch=e) for e in range(40)]
    assert all(len(d) == 2 and [w for *_, w in d] == [0.5, 0.5] for d in draws)
    assert {d[0][:2] for d in draws} == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_sides_without_tokens_and_identical_branches_make_no_pair():
    """Divergence: a branch that is a beginning of the other is no pair, and takes no weight."""
    tokens = [np.asarray(t, np.int32) for t in ([1, 2], [1, 2, 3], [1, 4], [1, 2])]
    tree = dataclasses.replace(
        example_tree(),
        branches=tuple(Branch(0, t, safe) for t, safe in zip(tokens, (True, False, False, False))),
    )
    assert choose_pairs(tree, odds_from="branch") == [(0, 1, 0.5), (0, 2, 0.5)]
    assert choose_pairs(tree, odds_from="divergence") == [(0, 2, 1.0)]


@pytest.mark.parametrize("pairing", ["all", "one", "rpo_code"])
@settings(deadline=None, max_examples=30)
@given(tree=trees(pictures=False))
def test_weights_sum_to_one_and_pairs_are_safe_against_unsafe_of_one_point(pairing, tree):
    """Every pair is (safe, unsafe) of one branch point; weights are a distribution."""
    for odds_from in ("branch", "divergence"):
        pairs = choose_pairs(tree, pairing=pairing, odds_from=odds_from, max_pairs=3)
        for chosen, rejected, _ in pairs:
            c, r = tree.branches[chosen], tree.branches[rejected]
            assert c.safe and not r.safe and c.at == r.at
        if pairs:
            assert sum(weight for *_, weight in pairs) == pytest.approx(1)
