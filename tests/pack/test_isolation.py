"""Branch isolation and causality, proven through gradients of the real model.

Every token of the row gets an id of its own, so that the gradient with respect to row i of the
embedding table is the gradient with respect to the input at place i.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.policy_model import PolicyModel, abstract_params, head_matrix
from srpo_jax.pack.packing import Budgets, make_batch
from srpo_jax.pack.tree_layout import choose_pairs, layout_tree
from srpo_jax.train.losses.target_logps import target_logps
from tests.support.tree_cases import CONFIG, corner_tree, example_tree

BUDGETS = Budgets(tokens=110, targets=80, segments=48, sequences=40, pairs=32, patches=32)
TOKENS = BUDGETS.tokens


@pytest.fixture(scope="module")
def jacobian():
    """(batch, layouts, d log p / d input token [N, T] and / d patch [N, P], as norms over D)."""
    trees = [corner_tree(), example_tree(branches=2)]
    layouts = [layout_tree(tree, choose_pairs(tree)) for tree in trees]
    batch = make_batch([layouts], BUDGETS)
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=TOKENS))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32),
        abstract_params(config),
    )
    batch = {**batch, "tokens": np.arange(TOKENS, dtype=np.int32)[None]}

    def logps(table, patches):
        full = {**params, "embed": {"embedding": table}}
        inputs = {**batch, "patches": patches}
        hidden = PolicyModel(config).apply({"params": full}, inputs)
        return target_logps(hidden, head_matrix(full, config), batch)[0]

    by_token, by_patch = jax.jit(jax.jacrev(logps, argnums=(0, 1)))(
        params["embed"]["embedding"], jnp.asarray(batch["patches"])
    )
    return batch, layouts, np.abs(by_token).sum(-1), np.abs(by_patch[:, 0]).sum(-1)


def test_log_probs_depend_on_their_own_path_and_exactly_nothing_else(jacobian):
    """Not on other branches, later tokens, other trees or padding: those gradients are 0.0."""
    batch, layouts, by_token, _ = jacobian
    target = start = 0
    for layout in layouts:
        for place in layout.target_pos:
            path, at = set(), layout.parent[place]
            while at >= 0:
                path.add(start + int(at))
                at = layout.parent[at]
            # The embeddings of picture tokens are replaced by the picture's: no gradient.
            text = {i for i in path if batch["image_index"][0, i] < 0}
            assert set(np.flatnonzero(by_token[target])) == text
            target += 1
        start += layout.sizes.tokens
    assert (by_token[target:].shape[0]) == BUDGETS.targets - target > 0


def test_log_probs_depend_on_every_patch_of_their_own_picture_and_no_other(jacobian):
    """Each tree reads its own pictures; two pictures in one row do not mix in the tower."""
    _, layouts, _, by_patch = jacobian
    target = patch = 0
    for layout in layouts:
        own = np.zeros(BUDGETS.patches, bool)
        own[patch : patch + layout.sizes.patches] = True
        rows = by_patch[target : target + layout.sizes.targets] != 0
        assert rows[:, own].all() and not rows[:, ~own].any()
        target += layout.sizes.targets
        patch += layout.sizes.patches


def test_branches_of_one_point_do_not_see_each_other(jacobian):
    """The case by name: d log p(branch a) / d (branch b's own tokens) = 0, both ways."""
    _, layouts, by_token, _ = jacobian
    layout = layouts[0]
    for a, b in zip(layout.pair_chosen, layout.pair_rejected):
        own = [np.isin(layout.target_segment, layout.sequences[s]) for s in (a, b)]
        only = [own[0] & ~own[1], own[1] & ~own[0]]
        for i in (0, 1):
            rows = np.flatnonzero(own[i])
            assert (by_token[np.ix_(rows, layout.target_pos[only[1 - i]])] == 0).all()
