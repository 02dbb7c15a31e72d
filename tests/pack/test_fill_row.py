"""Rows: several trees side by side in fixed shapes, none of them touching another."""

import numpy as np
import pytest
from hypothesis import given, settings

from srpo_jax.models.inputs import no_patches
from srpo_jax.pack.packing import Budgets, fill_row, make_batch
from srpo_jax.pack.tree_layout import choose_pairs, layout_tree
from tests.support.tree_cases import CONFIG, example_tree, forests

BUDGETS = Budgets(400, 300, 200, 160, 160, 256)
NO_PATCHES = no_patches(CONFIG)


@settings(deadline=None, max_examples=30)
@given(forest=forests())
def test_trees_of_a_row_do_not_see_each_other_and_keep_their_pictures(forest):
    """Each tree's slice equals the tree alone; tokens point at their own tree's patches."""
    layouts = [layout_tree(tree, choose_pairs(tree)) for tree in forest]
    row = fill_row(layouts, BUDGETS, questions=2.0)
    t = p = segments = 0
    seen = np.full(len(row["tokens"]), -1)
    for number, layout in enumerate(layouts):
        size = layout.sizes
        here = slice(t, t + size.tokens)
        np.testing.assert_array_equal(row["tokens"][here], layout.tokens)
        np.testing.assert_array_equal(row["subtree_end"][here] - t, layout.subtree_end)
        assert (row["subtree_end"][here] <= t + size.tokens).all()
        # The patches that the image tokens show are the prompt's own, in the prompt's order.
        shown = row["image_index"][here][layout.image_index >= 0]
        own = layout.image_index[layout.image_index >= 0]
        merged = row["patches"].reshape(-1, 4, CONFIG.vision.patch_dim)
        np.testing.assert_array_equal(
            merged[shown], layout.prompt.patches.reshape(-1, 4, CONFIG.vision.patch_dim)[own]
        )
        for name in ("window_seg", "full_seg"):
            ids = set(row[name][p : p + size.patches])
            others = set(row[name]) - set(row[name][p : p + size.patches])
            assert not ids & others and -1 not in ids
        seen[here] = number
        t, p = t + size.tokens, p + size.patches
        segments += size.segments
    assert (row["subtree_end"][t:] == np.arange(t + 1, BUDGETS.tokens + 1)).all()
    assert (row["window_seg"][p:] == -1).all() and (row["image_index"][t:] == -1).all()
    real = row["target_segment"] < BUDGETS.segments
    assert real.sum() == sum(layout.sizes.targets for layout in layouts)
    assert (seen[row["target_pos"][real]] == seen[row["target_parent"][real]]).all()
    assert row["seq_segments"].sum(axis=0).astype(bool).sum() == segments


def test_weights_are_those_of_the_whole_batch():
    """Weights over all rows sum to 1 per question kind, or by tokens when asked."""
    trees = [example_tree(seed=i, steps=1 + i, branches=4 if i else 0) for i in range(3)]
    layouts = [layout_tree(tree, choose_pairs(tree)) for tree in trees]
    batch = make_batch([layouts[:1], layouts[1:]], BUDGETS)
    assert np.isclose(batch["ref_weight"].sum(), 1)
    assert np.isclose(batch["pair_weight"].sum(), 2 / 3)  # one of three questions has no pair
    by_token = make_batch([layouts[:1], layouts[1:]], BUDGETS, ref_reduction="token")
    lengths = np.array([len(tree.reference) for tree in trees])
    np.testing.assert_allclose(
        sorted(by_token["ref_weight"][by_token["ref_weight"] > 0]),
        lengths / lengths.sum(),
        rtol=1e-6,
    )


def test_shapes_do_not_depend_on_what_is_in_the_rows():
    """Full, half full and empty rows have the same shapes and dtypes: one compilation."""
    layout = layout_tree(example_tree(), choose_pairs(example_tree()))
    rows = [
        fill_row(layouts, BUDGETS, questions=1.0, no_patches=NO_PATCHES)
        for layouts in ([], [layout], [layout, layout])
    ]
    described = [{k: (v.shape, v.dtype) for k, v in row.items()} for row in rows]
    assert described[0] == described[1] == described[2]
    batch = make_batch([[layout], []], BUDGETS)  # padding like the other rows
    assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} == described[0]
    np.testing.assert_array_equal(batch["tokens"][1], rows[0]["tokens"])


def test_a_row_of_padding_and_a_reduction_are_told():
    """What cannot be known, or is not there, is an error."""
    with pytest.raises(ValueError, match="no_patches"):
        fill_row([], BUDGETS, questions=1.0)
    with pytest.raises(ValueError, match="ref_reduction 'words' not in"):
        make_batch([], BUDGETS, ref_reduction="words")
