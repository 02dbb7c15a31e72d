"""srpo_jax/optim.py and srpo_jax/state.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from srpo_jax.errors import UserError
from srpo_jax.optim import make_optimizer, make_schedule, merge, select, trainable_paths

PARAMS = {
    "embed": {"embedding": jnp.full((4, 2), 1.0)},
    "norm": {"scale": jnp.full((2,), 2.0)},
    "vision": {"fc": {"kernel": jnp.full((2, 2), 3.0)}},
}


def settings(**changes):
    values = dict(
        steps=10, learning_rate=0.1, warmup_steps=2, schedule="cosine", weight_decay=0.0, b1=0.9,
        b2=0.95, eps=1e-8, clip_norm=1.0, freeze=(), optimizer="adamw",
    )  # fmt: skip
    return ConfigDict({**values, **changes})


def test_schedules():
    """Warm-up reaches the peak at warmup_steps, never starts at 0, and the decays end near 0."""
    rates = {
        kind: [float(make_schedule(kind, 2.0, steps=10, warmup_steps=4)(s)) for s in range(11)]
        for kind in ("cosine", "linear", "constant")
    }
    for values in rates.values():
        np.testing.assert_allclose(values[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates["constant"][4:], 2.0)
    np.testing.assert_allclose(rates["linear"][7], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rates["cosine"][7], 1.0, rtol=1e-6)
    assert rates["linear"][10] == 0.0 and abs(rates["cosine"][10]) < 1e-6
    with pytest.raises(UserError, match="cosine, linear, constant"):
        make_schedule("cosin", 1.0, steps=1, warmup_steps=0)


def test_frozen_parameters_have_no_state_and_do_not_move():
    """A regex freezes whole paths: no moments, no update, no share in the clipped norm."""
    optimizer = make_optimizer(settings(freeze=("vision/.*", "norm/scale")), PARAMS)
    assert optimizer.trainable == ("embed/embedding",)
    chosen = select(PARAMS, optimizer.trainable)
    state = optimizer.transform.init(chosen)
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * 8  # two moments
    updates, _ = optimizer.transform.update(jax.tree.map(jnp.ones_like, chosen), state, chosen)
    new = merge(PARAMS, optax.apply_updates(chosen, updates))
    assert jax.tree.structure(new) == jax.tree.structure(PARAMS)
    assert float(new["embed"]["embedding"][0, 0]) != 1.0
    for frozen in ("norm", "vision"):
        jax.tree.map(np.testing.assert_array_equal, new[frozen], PARAMS[frozen])


@pytest.mark.parametrize(
    ("freeze", "words"),
    [(("visio/.*",), "matches no parameter"), ((".*",), "nothing is left"), (("(",), "no regular")],
)
def test_bad_freeze_patterns_are_named(freeze, words):
    """A typo in a pattern must not silently train what was meant to be frozen."""
    with pytest.raises(UserError, match=words):
        trainable_paths(PARAMS, freeze)


def test_weight_decay_leaves_scales_alone():
    """With zero gradients only kernels and the embedding shrink."""
    optimizer = make_optimizer(settings(weight_decay=0.5), PARAMS)
    chosen = select(PARAMS, optimizer.trainable)
    zeros = jax.tree.map(jnp.zeros_like, chosen)
    updates, _ = optimizer.transform.update(zeros, optimizer.transform.init(chosen), chosen)
    assert not updates["norm/scale"].any()
    assert (updates["embed/embedding"] < 0).all() and (updates["vision/fc/kernel"] < 0).all()


def test_clipping_is_by_the_norm_over_all_parameters():
    """A gradient of norm 10 moves AdamW's first moment as one of norm clip_norm does."""
    optimizer = make_optimizer(settings(clip_norm=0.5), PARAMS)
    chosen = select(PARAMS, optimizer.trainable)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 7.0), chosen)
    _, state = optimizer.transform.update(grads, optimizer.transform.init(chosen), chosen)
    mu = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose(optax.global_norm(mu), 0.1 * 0.5, rtol=1e-5)
