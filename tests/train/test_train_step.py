"""srpo_jax/train/train_step.py on one device: accumulation, one compilation, a frozen reference
policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.train.checkpoint.manager import Checkpoints, load_params
from srpo_jax.train.losses.objective import Objective
from srpo_jax.train.optimizer import select
from tests.support import multi_device_run as tiny


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


@pytest.fixture(scope="module")
def narrow(mesh):
    """(state at the start, step) with parameters in bfloat16 and updates smaller than they hold."""
    settings = tiny.train_settings(learning_rate=1e-5, schedule="constant", warmup_steps=0)
    return tiny.start(tiny.tiny_config(), mesh, dtype=jnp.bfloat16, settings=settings)


def test_bfloat16_parameters_have_a_float32_master(narrow, tmp_path):
    """The update is float32 AdamW's on the master, whose rounding the parameters are; updates too
    small for bfloat16 are not lost; a checkpoint holds both, bit for bit.
    """
    state, step = narrow
    first, start = jax.device_get(state.master), jax.device_get(state.params)
    batch = tiny.random_batch(tiny.tiny_config(), 0)
    state, _ = step(state, batch)
    adam = jax.device_get(
        {name: optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu")}
    )
    once = jax.device_get(state.master)
    moved = by_path(jax.device_get(state.params))
    stuck = total = 0
    for path, before in first.items():
        assert once[path].dtype == adam["nu"][path].dtype == np.float32
        assert moved[path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(moved[path], once[path].astype(jnp.bfloat16))
        mean, square = adam["mu"][path] / 0.1, adam["nu"][path] / 0.05
        change = mean / (np.sqrt(square) + 1e-8)
        change += 0.01 * before if path.endswith(("kernel", "embedding")) else 0
        want = before - 1e-5 * change
        np.testing.assert_allclose(once[path] - before, want - before, rtol=1e-3, atol=2e-8)
        stuck += np.sum(moved[path] == by_path(start)[path])
        total += before.size
    assert stuck > 0.8 * total  # in bfloat16 alone nearly nothing would ever move

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        restored, _ = checkpoints.restore(target, lambda run: None)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    _, master = load_params(tmp_path, target.master, "master")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(master), once)
    for _ in range(10):
        state, _ = step(state, batch)
        restored, _ = step(restored, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    end = select(jax.device_get(state.params), tuple(first))
    assert sum(np.sum(end[path] == by_path(start)[path]) for path in first) < 0.7 * stuck
