"""srpo_jax/step.py on one device: accumulation, one compilation, a frozen reference policy."""

from __future__ import annotations

import jax
import multi_device_run as tiny
import numpy as np
import optax
import pytest

from srpo_jax.mesh import make_mesh
from srpo_jax.objective import Objective


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


def moments(state) -> np.ndarray:
    """AdamW's first moment after one step: a tenth of the clipped gradient."""
    leaves = jax.tree.leaves(optax.tree_utils.tree_get(state.opt_state, "mu"))
    return np.concatenate([np.asarray(x).ravel() for x in leaves])


def test_accumulation_changes_nothing_and_compiles_once(mesh):
    """Four slices of two rows give the loss, metrics and gradient of eight rows at once; batches
    of other trees, with other pictures and numbers of branches, are the same program.
    """
    config = tiny.tiny_config()
    found = []
    for accumulate in (1, 4):
        state, step = tiny.start(config, mesh, accumulate=accumulate)
        state, metrics = step(state, tiny.random_batch(config, 0))
        found.append((jax.device_get(metrics), moments(state)))
        for seed in (1, 2, 3):
            state, _ = step(state, tiny.random_batch(config, seed))
        assert step._cache_size() == 1
        assert int(state.step) == 4
    (metrics, grads), (metrics_4, grads_4) = found
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_4[name], value, rtol=2e-6, atol=1e-7, err_msg=name)
    assert np.linalg.norm(grads_4 - grads) <= 2e-6 * np.linalg.norm(grads)
    assert np.linalg.norm(grads) > 1e-3


def test_dpo_compares_with_the_policy_at_the_start(mesh):
    """The reference policy and frozen parameters never move; margins are 0 in the first step only,
    where every pair costs log 2.
    """
    config = tiny.tiny_config(tied=False)
    state, step = tiny.start(
        config,
        mesh,
        objective=Objective(contrast="dpo", normalise="sum", ref_coef=0.0, lambda_exp=1.0),
        settings=tiny.train_settings(freeze=("vision/.*", "embed/.*")),
    )
    first = jax.device_get(state.params)
    batch = tiny.random_batch(config, 0)
    margins = []
    for _ in range(3):
        state, metrics = step(state, batch)
        margins.append(float(metrics["rewards/margins"]))
        if len(margins) == 1:
            expected = np.log(2) * batch["pair_weight"].sum()
            np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert abs(margins[0]) < 1e-5 and margins[-1] > 1e-3
    jax.tree.map(np.testing.assert_array_equal, state.base, first)
    jax.tree.map(np.testing.assert_array_equal, state.params["vision"], first["vision"])
    jax.tree.map(np.testing.assert_array_equal, state.params["embed"], first["embed"])
    assert (state.params["lm_head"]["kernel"] != first["lm_head"]["kernel"]).any()
    assert metrics["learning_rate"] > 0 and metrics["grad_norm"] > 0
