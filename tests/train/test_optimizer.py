"""srpo_jax/train/optimizer.py and srpo_jax/train/train_state.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from srpo_jax.distributed.mesh import AXES, make_mesh
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.train.optimizer import (
    make_optimizer,
    make_schedule,
    merge,
    select,
    trainable_paths,
)
from srpo_jax.train.train_state import abstract_state, init_state, state_shardings
from tests.distributed import test_sharding
from tests.support.multi_device_run import tiny_config

PARAMS = {
    "embed": {"embedding": jnp.full((4, 2), 1.0)},
    "norm": {"scale": jnp.full((2,), 2.0)},
    "vision": {"fc": {"kernel": jnp.full((2, 2), 3.0)}},
}


def settings(**changes):
    values = dict(
        steps=10,
        learning_rate=0.1,
        warmup_steps=2,
        schedule="cosine",
        weight_decay=0.0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        clip_norm=1.0,
        freeze=(),
        optimizer="adamw",
    )
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


def adafactor(**changes):
    return settings(
        optimizer="adafactor", clip_norm=0.0, schedule="constant", warmup_steps=0, **changes
    )


def test_adafactor_is_optax_applied_to_each_layer():
    """Stacked layers are factored one by one, never over the layers, although 300 of them are more
    than a side of the matrix: the same updates as optax' parts on each layer; three axes, short
    axes and scales too. What is stored is a few hundredths of AdamW's.
    """
    rng = np.random.default_rng(0)
    shapes = {
        "layers/mlp/up/kernel": (300, 128, 160),
        "layers/attn/q/kernel": (2, 128, 3, 128),
        "layers/norm/scale": (2, 128),
        "vision/projector/fc1/kernel": (160, 128),
        "vision/blocks/mlp/fc1/kernel": (2, 200, 16),
    }
    params = {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()}
    optimizer = make_optimizer(adafactor(weight_decay=0.01), params)
    state = jax.jit(optimizer.transform.init)(params)
    plain = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(0.01),
        optax.scale_by_learning_rate(0.1),
    )
    bare = optax.chain(
        *[
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_learning_rate(0.1),
        ]
    )

    def layer(tree, path, i):
        return tree[path] if path.startswith("vision/projector") else tree[path][i]

    shardings = [(path, i) for path in shapes for i in (0, 1)]
    rule = {p: plain if p[0].endswith("kernel") else bare for p in shardings}
    states = {p: rule[p].init(layer(params, *p)) for p in shardings}
    update = jax.jit(optimizer.transform.update)
    for _ in range(2):
        grads = {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()}
        updates, state = update(grads, state, params)
        for p in shardings:
            want, states[p] = rule[p].update(layer(grads, *p), states[p], layer(params, *p))
            np.testing.assert_allclose(layer(updates, *p), want, rtol=1e-5, atol=1e-7, err_msg=p)
    stored = sum(x.size for x in jax.tree.leaves(state))
    assert stored < 0.03 * 2 * sum(x.size for x in params.values())


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_factored_moments_lie_along_the_axis_that_they_keep(sizes):
    """Every piece of Adafactor's state of the 3B: split as the parameter is on the axes it has, or
    whole; a shape that does not fit its place would be refused here."""
    abstract = test_sharding.abstract_params(test_sharding.model("3B"))
    optimizer = make_optimizer(adafactor(), abstract)
    shape = abstract_state(abstract, optimizer, with_reference=False, dtype=jnp.bfloat16)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = state_shardings(shape, mesh)
    jax.tree.map(lambda x, place: place.shard_shape(x.shape), shape, shardings)
    found = {path: place.spec for path, place in by_path(shardings.opt_state).items()}

    def spec(name, kind):
        (hit,) = [s for path, s in found.items() if name in path and path.endswith("/" + kind)]
        return hit

    assert spec("layers/mlp/gate/kernel", "v_row") == P(None, "fsdp")  # [L, D]
    assert spec("layers/mlp/gate/kernel", "v_col") == P(None, "tensor")  # [L, F]
    assert spec("layers/attn/o/kernel", "v_row") == P(None, "tensor", None)  # [L, H, d]
    assert spec("layers/attn/o/kernel", "v_col") == P(None, "tensor", "fsdp")  # [L, H, D]
    assert spec("embed/embedding", "v_row") == P(None)  # [D]
    assert spec("embed/embedding", "v_col") == P(("tensor", "fsdp"))  # [V]
    assert spec("layers/mlp/gate/kernel", "v") == P()
    assert shardings.master["layers/mlp/gate/kernel"].spec == P(None, "fsdp", "tensor")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_weights_become_the_state(dtype, recwarn):
    """Their memory is used again, or a state that just fits a device could not be made there; a
    reference keeps their values."""
    config = tiny_config()
    shapes = abstract_params(config)
    optimizer = make_optimizer(settings(freeze=("vision/.*",)), shapes)
    mesh = make_mesh(devices=jax.devices()[:1])
    kind = dict(with_reference=True, dtype=dtype)
    shardings = state_shardings(abstract_state(shapes, optimizer, **kind), mesh)
    weights = jax.tree.map(
        lambda x, place: jax.device_put(jnp.full(x.shape, 0.3, x.dtype), place),
        shapes,
        shardings.params,
    )
    state = init_state(weights, optimizer, shardings, **kind)
    trained = by_path(weights)["embed/embedding"]
    assert trained.is_deleted()
    kept = state.master or by_path(state.params)
    assert np.all(np.asarray(kept["embed/embedding"]) == np.float32(0.3))
    assert all(np.all(np.asarray(x) == dtype(0.3)) for x in jax.tree.leaves(state.base))
    assert not recwarn.list


def test_merge_puts_values_in_place_and_loses_none():
    """Every given leaf lands at its path, the others stay, and a path that is not there fails."""
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(tree, {"a/c": 5, "d": 6}) == {"a": {"b": 1, "c": 5}, "d": 6}
    assert tree["d"] == 3
    with pytest.raises(KeyError, match="a/x"):
        merge(tree, {"a/x": 1})
