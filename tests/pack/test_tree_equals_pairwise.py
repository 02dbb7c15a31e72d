"""The heart of the suite: packed reasoning trees are exact.

For random trees over the real Qwen2.5-VL, the loss and the gradient of every parameter equal
those of a naive pairwise implementation (naive_pairwise.py: one plain causal row per sequence,
full logits, the formulas) to 1e-5 relative in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, seed, settings

from srpo_jax.models.policy_model import PolicyModel, abstract_params, head_matrix
from srpo_jax.pack.packing import Budgets, make_batch
from srpo_jax.pack.tree_layout import choose_pairs, layout_tree
from srpo_jax.train.losses.objective import Objective, srpo_loss
from srpo_jax.train.losses.target_logps import target_logps
from tests.support.naive_pairwise import naive_batch, naive_loss, token_logps
from tests.support.tree_cases import CONFIG, corner_tree, example_tree, forests

MODEL = PolicyModel(CONFIG)
# One shape for every example on either side, so that each side compiles once.
BUDGETS = Budgets(tokens=160, targets=130, segments=64, sequences=48, pairs=48, patches=96)
NAIVE = dict(rows=40, pairs=20, tokens=40, patches=48)


def _random_params(seed):
    """Every parameter random, norms and biases too: a zero bias would hide a wrong gradient."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            ("scale" in jax.tree_util.keystr(path)) + 0.15 * rng.standard_normal(leaf.shape),
            jnp.float32,
        ),
        abstract_params(CONFIG),
    )


PARAMS, FROZEN = _random_params(0), _random_params(1)


# The gradient of either loss is taken in two steps, through its token log-probs, so that the
# model compiles once for all objectives: first d loss / d log-probs, then pulled back.
def _tree_logps(params, batch):
    # A chunk that does not divide N: more than one chunk, and padding of the last, are covered.
    hidden = MODEL.apply({"params": params}, batch)
    return target_logps(hidden, head_matrix(params, CONFIG), batch, chunk=48)


def _naive_logps(params, batch):
    return token_logps(MODEL, head_matrix, params, batch["inputs"])


# Compiling is most of this file's time, and LLVM's optimisation half of that.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
_FORWARD = {f: _jit(f) for f in (_tree_logps, _naive_logps)}
_PULL_BACK = {
    f: _jit(lambda params, batch, ct, f=f: jax.vjp(lambda p: f(p, batch), params)[1](ct)[0])
    for f in (_tree_logps, _naive_logps)
}


def _loss_and_gradients(logps, batch, loss):
    """loss(log-probs, log-probs of the frozen policy) -> its value and the gradient tree."""
    frozen = _FORWARD[logps](FROZEN, batch)
    value, ct = jax.value_and_grad(loss)(_FORWARD[logps](PARAMS, batch), frozen)
    return float(value), _PULL_BACK[logps](PARAMS, batch, ct)


DEFAULT = Objective()


def _compare(trees, objective=DEFAULT, reference="dataset", odds_from="branch", **switches):
    """Assert equality; returns the loss. `switches`: the objective in naive_loss's words."""
    layouts = [
        layout_tree(
            tree, choose_pairs(tree, odds_from=odds_from), reference=reference, odds_from=odds_from
        )
        for tree in trees
    ]
    # Two trees side by side in the first row, a third one alone in the second.
    batch = make_batch([layouts[:2], layouts[2:]], BUDGETS)
    naive = naive_batch(trees, reference=reference, odds_from=odds_from, **NAIVE)
    got, grads = _loss_and_gradients(
        _tree_logps, batch, lambda x, frozen: srpo_loss(x, batch, objective, frozen)[0]
    )
    want, want_grads = _loss_and_gradients(
        _naive_logps, naive, lambda x, frozen: naive_loss(x, frozen, naive, **switches)
    )
    assert got == pytest.approx(want, rel=1e-5, abs=1e-6)
    differences = _relative_differences(grads, want_grads)
    worst = max(differences, key=differences.get)
    assert differences[worst] <= 1e-5, worst
    return want


def _relative_differences(got, want):
    """{path: ||got - want|| / ||want||} per leaf.

    A leaf whose gradient is rounding noise (text-only trees leave the tower's at 0; others cancel)
    is measured against 1e-3 of the whole gradient's norm instead.
    """
    norm = {
        jax.tree_util.keystr(path): float(jnp.linalg.norm(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(want)
    }
    floor = 1e-3 * np.linalg.norm(list(norm.values())) + 1e-12
    difference = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), got, want)
    return {
        jax.tree_util.keystr(path): float(leaf) / max(norm[jax.tree_util.keystr(path)], floor)
        for path, leaf in jax.tree_util.tree_leaves_with_path(difference)
    }


FOREST = forests(max_trees=3, steps=(1, 2), branches=3, length=5)
EXACT = dict(deadline=None, suppress_health_check=list(HealthCheck))


@seed(1)
@settings(max_examples=12, **EXACT)
@given(trees=FOREST)
@example(trees=[corner_tree(), corner_tree(grids=((1, 4, 6), (1, 2, 4)))])
def test_loss_and_every_gradient_equal_the_pairwise_ones(trees):
    """SRPO's loss: random trees, one to three of them, shared beginnings, pictures of any size."""
    _compare(trees)


@pytest.mark.slow
@settings(max_examples=80, **EXACT)
@given(trees=FOREST)
def test_loss_and_every_gradient_equal_the_pairwise_ones_at_length(trees):
    """The same for many more trees, and for the loss of RPO's code."""
    _compare(trees)
    _compare(trees, reference="chosen", odds_from="divergence")


@pytest.mark.parametrize(
    "objective, switches",
    [
        (
            Objective(lambda_exp=1.0, contrast="dpo", normalise="sum", ref_coef=0.0),
            dict(lam=1.0, contrast="dpo", mean=False, ref_coef=0.0),
        ),
        (
            Objective(lambda_exp=0.7, contrast="dpo", beta=0.4),
            dict(lam=0.7, contrast="dpo", beta=0.4),
        ),
        (
            Objective(contrast="simpo", beta=2.0, gamma=0.3),
            dict(contrast="simpo", beta=2.0, gamma=0.3),
        ),
        (Objective(contrast="ipo", beta=0.5), dict(contrast="ipo", beta=0.5)),
        (Objective(normalise="sum"), dict(mean=False)),
        (Objective(lambda_exp=0.0), dict(lam=0.0)),
    ],
    ids=["dpo", "dpo-mean", "simpo", "ipo", "sum", "sft"],
)
def test_every_contrast_equals_its_formula(objective, switches):
    """DPO and IPO with a frozen reference policy, SimPO, sums instead of means, SFT alone."""
    _compare([corner_tree(), example_tree(branches=2)], objective, **switches)


@pytest.mark.parametrize("reference", ["dataset", "chosen", "none"])
@pytest.mark.parametrize("odds_from", ["branch", "divergence"])
def test_readings_of_rpo_equal_their_formulas(reference, odds_from):
    """L_ref on the path, on prefix + chosen (RPO's code) or none; odds of branches or after the
    pair's common tokens (RPO's code)."""
    _compare([corner_tree(), example_tree(branches=2)], reference=reference, odds_from=odds_from)
