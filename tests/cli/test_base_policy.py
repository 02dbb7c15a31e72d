"""What the demo's base policy is trained on: combinations of train only, in rows that hold them."""

from __future__ import annotations

import itertools

import pytest

from srpo_jax.cli import base_policy
from srpo_jax.configs import ssui_mini
from srpo_jax.data_pipelines.ssui_mini import world
from srpo_jax.pack.packing import make_batch
from srpo_jax.pack.tree_layout import layout_tree


@pytest.mark.parametrize("num_checks", [0, 6])
def test_the_mixture_is_of_train_and_fits_a_row(num_checks):
    """With the shipped tokenizer; half of the questions are risky."""
    folder = ssui_mini.get_config().model.path
    made = base_policy.MixtureTrees(folder, seed=0, variants=1, num_checks=num_checks)
    trees = list(itertools.islice(made, 200))
    pairs = [tree.id.split("/") for tree in trees]
    pairs = [(world.SCENE[scene], world.REQUEST[request]) for scene, request in pairs]
    assert {world.split_of(*pair) for pair in pairs} == {"train"}
    assert 60 < sum(world.is_risky(*pair) for pair in pairs) < 140
    assert all(len(tree.pieces) == 7 + num_checks for tree in trees)
    longest = max(trees, key=lambda tree: sum(map(len, tree.pieces)))
    make_batch([[layout_tree(longest, [])]], base_policy.row_budgets(num_checks))


def test_a_number_of_steps_that_is_not_there_is_told(tmp_path, capsys):
    """Before anything is written."""
    assert base_policy.main([f"--out={tmp_path / 'x'}", "--path_steps=13"]) == 2
    assert capsys.readouterr().err == "--path_steps=13 is not from 6 to 12\n"
    assert not (tmp_path / "x").exists()
