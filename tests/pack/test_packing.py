"""Packing: nothing over budget, nothing lost, nothing twice, the same plan for the same inputs."""

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from srpo_jax.errors import UserError
from srpo_jax.models.inputs import no_patches
from srpo_jax.pack.packing import (
    Budgets,
    count_questions,
    lay_out_within,
    make_batch,
    plan_rows,
    split_tree,
)
from srpo_jax.pack.tree_layout import TreeSizes, choose_pairs, layout_tree, teach
from srpo_jax.train.losses.objective import Objective, srpo_loss
from tests.support.tree_cases import CONFIG, example_tree, forests, trees

NO_PATCHES = no_patches(CONFIG)
PACKING = dict(deadline=None, max_examples=40)


def _roomy(tokens):
    return Budgets(tokens, 256, 256, 256, 256, 512)


def _smallest_row(tree, pairs, **switches):
    """The tokens of the largest thing that split_tree may not split."""
    needs = [layout_tree(dataclasses.replace(tree, taught=()), [], **switches).sizes.tokens]
    lone = dataclasses.replace(tree, count_reference=False)
    for at in {tree.branches[k].at for k, *_ in (*pairs, *tree.taught)}:
        here = [p for p in pairs if tree.branches[p[0]].at == at]
        taught = tuple(each for each in tree.taught if tree.branches[each[0]].at == at)
        alone = dataclasses.replace(lone, taught=taught)
        needs.append(layout_tree(alone, here, **switches).sizes.tokens)
    return max(needs)


def _token_logps(batch):
    """A made-up log-prob of every target: a function of its whole path and of nothing else."""
    out = np.zeros(batch["target_pos"].shape, np.float32)
    for b, n in np.argwhere(batch["target_segment"] < batch["seq_segments"].shape[-1]):
        i = batch["target_pos"][b, n]
        visible = np.flatnonzero(batch["subtree_end"][b, : i + 1] > i)
        path = np.concatenate([batch["tokens"][b, visible], batch["positions"][b, 0, visible]])
        out[b, n] = -0.01 - zlib.crc32(path.astype(np.int32).tobytes()) % 1000 / 250
    return out


def _loss(plan, budgets, **kwargs):
    plan = list(plan) + [[]] * (6 - len(plan))  # always 6 rows: the loss compiles once
    batch = make_batch(plan, budgets, no_patches=NO_PATCHES, **kwargs)
    loss, metrics = srpo_loss(_token_logps(batch), batch, Objective())
    return float(loss), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("reference", ["dataset", "chosen"])
@settings(**PACKING)
@given(tree=trees(steps=(2, 4), branches=3), extra=st.integers(0, 12), coef=st.sampled_from((0, 2)))
def test_split_parts_add_up_to_the_whole(reference, tree, extra, coef):
    """Cut between points only, within budget, no pair lost or twice, reference once, same loss."""
    tree = teach(tree, coef)
    pairs = choose_pairs(tree)
    budgets = _roomy(_smallest_row(tree, pairs, reference=reference) + extra)
    parts = split_tree(tree, pairs, budgets, reference=reference)
    assert sorted(p for _, some in parts for p in some) == sorted(pairs)
    assert sorted(each for part, _ in parts for each in part.taught) == sorted(tree.taught)
    points = [{tree.branches[k].at for k, *_ in (*some, *part.taught)} for part, some in parts]
    assert sum(map(len, points)) == len(set().union(*points))  # a point lies in one part
    assert sum(part.question_share for part, _ in parts) == pytest.approx(1)
    layouts = lay_out_within(tree, pairs, budgets, reference=reference)
    assert len(layouts) == len(parts)
    assert all(budgets.holds(layout.sizes) for layout in layouts)
    if reference == "dataset" and not coef:
        assert sum(np.count_nonzero(layout.ref_weight) for layout in layouts) == 1
    whole = layout_tree(tree, pairs, reference=reference)
    want, want_metrics = _loss([[whole]], _roomy(whole.sizes.tokens))
    got, got_metrics = _loss([[layout] for layout in layouts], budgets)
    assert got == pytest.approx(want, rel=1e-5)
    assert got_metrics == pytest.approx(want_metrics, rel=1e-5, abs=1e-6)


@settings(**PACKING)
@given(tree=trees(steps=(1, 4), branches=3), coef=st.sampled_from((0.5, 2.0)))
def test_safe_branches_are_taught_as_if_each_stood_alone(tree, coef):
    """L_ref is the reference path's, and `coef` times the mean over safe branches, whatever their
    point, of the mean over their own tokens; unsafe ones are in no row.
    """
    budgets = _roomy(512)

    def loss_ref(one):
        return _loss([[layout_tree(one, [])]], budgets)[1]["loss_ref"]

    def alone(branch):
        """As the end of a reference path of its own, of which only this is counted."""
        path = (*tree.pieces[: branch.at], branch.tokens)
        whole = dataclasses.replace(tree, pieces=path, branches=())
        batch = make_batch([[layout_tree(whole, [])]], budgets, no_patches=NO_PATCHES)
        logps = _token_logps(batch)[0, : sum(map(len, path))]
        return -float(logps[-len(branch.tokens) :].mean())

    safe = [branch for branch in tree.branches if branch.safe]
    expected = loss_ref(tree) + (coef * np.mean([alone(b) for b in safe]) if safe else 0.0)
    assert loss_ref(teach(tree, coef)) == pytest.approx(expected, rel=1e-5)
    used = {k for k, _ in teach(tree, coef).taught}
    assert used == {k for k, branch in enumerate(tree.branches) if branch.safe}


def test_a_tree_is_split_into_few_parts():
    """A tree of 5 branch points that is 1.4 rows long becomes two parts, not five."""
    tree = example_tree(steps=4, branches=6, length=20)
    pairs = choose_pairs(tree)
    size = layout_tree(tree, pairs).sizes.tokens
    budgets = dataclasses.replace(_roomy(int(0.7 * size)), targets=int(0.7 * size))
    assert len(split_tree(tree, pairs, budgets)) == 2


@pytest.mark.parametrize(
    "budgets, message",
    [
        (_roomy(60), r"the branch point after 2 steps alone needs \d+ tokens \(a row has 60\)"),
        (_roomy(12), r"its reference path alone needs \d+ tokens"),
        (
            dataclasses.replace(_roomy(500), sequences=4, pairs=3),
            r"alone needs 4 pairs \(a row has 3\)",  # and 4 sequences, which it has
        ),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(budgets, message):
    """A branch point, or a reference path, larger than a row: the tree, the size, what to do."""
    tree = example_tree(steps=2, branches=4, length=14)
    with pytest.raises(UserError, match=f"tree 'example 0'.*{message}.*raise pack.row_tokens"):
        split_tree(tree, choose_pairs(tree), budgets)


SIZES = st.builds(
    TreeSizes,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 6),
    st.sampled_from((0, 4, 8)),
)


@settings(**PACKING)
@given(
    sizes=st.lists(SIZES, max_size=60),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
    buffer=st.integers(1, 70),
)
def test_plan_holds_every_item_once_within_every_budget(sizes, seed, epoch, buffer):
    """A plan is a partition of the items, no row exceeds a budget, and it repeats exactly."""
    budgets = Budgets(64, 64, 8, 8, 8, 16)
    plan = plan_rows(sizes, budgets, seed=seed, epoch=epoch, buffer=buffer)
    assert sorted(i for row in plan for i in row) == list(range(len(sizes)))
    for row in plan:
        assert row and budgets.holds(TreeSizes(*np.sum([sizes[i] for i in row], axis=0)))
    assert plan == plan_rows(list(sizes), budgets, seed=seed, epoch=epoch, buffer=buffer)


def test_plan_fills_rows_and_changes_with_seed_and_epoch():
    """Best fit fills at least 93 % where trees are half a row at most; epochs differ."""
    rng = np.random.default_rng(0)
    sizes = [TreeSizes(int(t), int(t), 4, 4, 4, 4) for t in rng.integers(50, 500, 600)]
    budgets = Budgets.fit(sizes, row_tokens=1024)
    plans = [plan_rows(sizes, budgets, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    fill = sum(s.tokens for s in sizes) / (len(plans[0]) * budgets.tokens)
    assert fill > 0.93
    assert plans[0] != plans[1] != plans[2] != plans[0]


def _alone(tokens):
    return TreeSizes(tokens, 1, 1, 1, 1, 0)


def test_a_tree_goes_into_the_fullest_row_that_has_room():
    """Largest first: 41 fits beside 55 only and leaves room for 4 there, of which the row of 60
    has more, but less for targets.
    """
    sizes = [_alone(tokens) for tokens in (4, 41, 55)] + [_alone(60)._replace(targets=4)]
    plan = plan_rows(sizes, Budgets(100, 8, 8, 8, 8, 0), seed=0, epoch=0)
    rows = {frozenset(sizes[i].tokens for i in row) for row in plan}
    assert rows == {frozenset([60]), frozenset([55, 41, 4])}


def test_rows_come_in_no_order_of_trees_or_sizes():
    """Neither are buffers made of neighbours, nor do large trees come first within one."""
    sizes = [_alone(40 - i) for i in range(32)]
    budgets = Budgets(40, 1, 8, 8, 8, 0)  # of targets a row has room for one tree's
    orders = [
        [i for row in plan_rows(sizes, budgets, seed=0, epoch=0, buffer=buffer) for i in row]
        for buffer in (8, 32)
    ]
    assert set(orders[0][:8]) != set(range(8)) and orders[0][:8] != sorted(orders[0][:8])
    assert orders[1] != sorted(orders[1])


def test_budgets_are_what_rows_filled_by_tokens_hold():
    """Known answer: two trees of 100 tokens fill a row of 256, so everything else has room for two,
    rounded up; but no more targets or segments than tokens, where trees will be split.
    """
    trees = [TreeSizes(100, 60, 11, 10, 9, 20)] * 20
    budgets = Budgets.fit(trees, row_tokens=256, patch_multiple=16)
    assert budgets == Budgets(256, 128, 24, 24, 24, 48)
    assert Budgets.fit(trees) == Budgets(128, 64, 16, 16, 16, 20)
    one_in_twenty = [*trees, TreeSizes(500, 400, 300, 10, 100, 0)]
    budgets = Budgets.fit(one_in_twenty, row_tokens=256)
    assert budgets == Budgets(256, 256, 256, 24, 104, 40)
    for rows, pairs in ((2, 24), (3, 40)):  # of 41 that hold twice 20 pairs instead of twice 9
        more = [tree._replace(pairs=20) for tree in trees[: 2 * rows]]
        assert Budgets.fit(more + trees * 3 + trees[: 22 - 2 * rows], row_tokens=256).pairs == pairs
    with pytest.raises(UserError, match="no trees to pack"):
        Budgets.fit([])


def ssui_like(rng, count):
    """Sizes of questions as SSUI's are taken to be: a picture of 256 to 1280 tokens, a prompt of 30
    to 119, six steps and a reply of 20 to 59 each, and at every step 4 to 8 branches of 60 to 140 %
    of what is left of the path, of which any number are safe.
    """
    sizes = []
    for _ in range(count):
        pieces, k = rng.integers(20, 60, 7), int(rng.integers(4, 9))
        branches = sum(
            int(pieces[at:].sum() * rng.uniform(0.6, 1.4)) for at in range(6) for _ in range(k)
        )
        picture, prompt = int(rng.integers(256, 1281)), int(rng.integers(30, 120))
        targets = int(pieces.sum()) + branches
        sizes.append(
            TreeSizes(
                picture + prompt + targets,
                targets,
                7 + 6 * k,
                1 + 6 * k,
                sum(int(safe * (k - safe)) for safe in rng.integers(0, k + 1, 6)),
                4 * picture,
            )
        )
    return sizes


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), epoch=st.integers(0, 9), trees_a_row=st.floats(2, 5))
def test_rows_are_filled_on_realistic_lengths(seed, epoch, trees_a_row):
    """At least 90 % of the tokens of an epoch's rows are trees', where a row is twice as long as
    the mean tree or longer; all other budgets are in force as Budgets.fit sets them."""
    sizes = ssui_like(np.random.default_rng(seed), 512)
    tokens = [size.tokens for size in sizes]
    row = 64 * int(np.ceil(max(trees_a_row * np.mean(tokens), max(tokens)) / 64))
    budgets = Budgets.fit(sizes, row_tokens=row)
    plan = plan_rows(sizes, budgets, seed=seed, epoch=epoch)
    assert sum(tokens) >= 0.9 * len(plan) * budgets.tokens


@pytest.mark.parametrize("reference", ["dataset", "chosen"])
@settings(**PACKING)
@given(forest=forests(max_trees=4), extra=st.integers(0, 30))
def test_a_batch_holds_everything_once(reference, forest, extra):
    """Split, packed and filled in: every pair and its weight, every token of every part, and the
    reference tokens of each question are in the rows, once each."""
    pairs = [choose_pairs(tree) for tree in forest]
    budgets = _roomy(
        extra
        + max(_smallest_row(tree, some, reference=reference) for tree, some in zip(forest, pairs))
    )
    parts = [
        lay_out_within(tree, some, budgets, reference=reference)
        for tree, some in zip(forest, pairs)
    ]
    layouts = [layout for some in parts for layout in some if layout.sizes.sequences]
    assume(layouts)  # a tree without any loss is not trained on
    plan = plan_rows([layout.sizes for layout in layouts], budgets, seed=0, epoch=0)
    batch = make_batch([[layouts[i] for i in row] for row in plan], budgets)
    wanted = [weight for some in pairs for _, _, weight in some]
    held = batch["pair_weight"][batch["pair_weight"] > 0]
    held = np.sort(held) * count_questions(layouts)
    np.testing.assert_allclose(held, np.sort(wanted), rtol=1e-5)
    targets = batch["target_segment"] < batch["seq_segments"].shape[-1]
    assert targets.sum() == sum(layout.sizes.targets for layout in layouts)
    ends = batch["subtree_end"]
    tokens = np.where(ends > np.arange(ends.shape[1]) + 1, ends, 0).max(axis=1)
    assert tokens.sum() == sum(layout.sizes.tokens for layout in layouts)
    for tree, some, own in zip(forest, pairs, parts):
        whole = layout_tree(tree, some, reference=reference)
        assert sum(layout.ref_tokens for layout in own) == pytest.approx(whole.ref_tokens)
        if reference == "dataset":
            assert whole.ref_tokens == len(tree.reference)


def test_plan_refuses_an_item_larger_than_a_row():
    """An item that was not split is named instead of being dropped."""
    with pytest.raises(UserError, match="item 1 .*does not fit"):
        plan_rows(
            [TreeSizes(1, 1, 1, 1, 1, 0), TreeSizes(65, 1, 1, 1, 1, 0)],
            Budgets(64, 64, 8, 8, 8, 16),
            seed=0,
            epoch=0,
        )


@settings(**PACKING)
@given(sizes=st.lists(SIZES, min_size=1, max_size=30), row_tokens=st.sampled_from((0, 64, 256)))
def test_fitted_budgets_hold_every_tree(sizes, row_tokens):
    """Budgets.fit leaves room for each tree alone; multiples and the image minimum are kept."""
    budgets = Budgets.fit(sizes, row_tokens=row_tokens)
    assert all(
        budgets.holds(TreeSizes(s.tokens, min(s.targets, budgets.targets), *s[2:])) for s in sizes
    )
    assert budgets.tokens % 64 == 0 and budgets.patches % 4 == 0 and budgets.patches >= 4
    assert not row_tokens or budgets.tokens == row_tokens


@settings(deadline=None, max_examples=15)
@given(forest=forests(max_trees=4))
def test_packing_does_not_change_the_loss(forest):
    """All trees in one row, one row each, or as planned: the same loss and metrics."""
    layouts = [layout_tree(tree, choose_pairs(tree)) for tree in forest]
    distributed_session = sum(layout.sizes.tokens for layout in layouts)
    budgets = _roomy(distributed_session)
    plan = plan_rows(
        [layout.sizes for layout in layouts],
        dataclasses.replace(
            budgets,
            tokens=max(
                distributed_session // 2 + 1, max(layout.sizes.tokens for layout in layouts)
            ),
        ),
        seed=0,
        epoch=0,
    )
    planned = [[layouts[i] for i in row] for row in plan]
    for reduction in ("question", "token"):
        want = _loss([layouts], budgets, ref_reduction=reduction)[1]
        for rows in ([[layout] for layout in layouts], planned):
            assert _loss(rows, budgets, ref_reduction=reduction)[1] == pytest.approx(
                want, rel=1e-5, abs=1e-6
            )
