"""srpo_jax/models/blocks/decoder.py: remat policies change what is kept, never what is computed."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.config.fields import FIELDS
from srpo_jax.errors import UserError
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.decoder import POLICIES, check_host_memory
from srpo_jax.models.policy_model import PolicyModel
from tests.support import multi_device_run as tiny

CONFIG = tiny.tiny_config()
INPUTS = (
    "tokens",
    "positions",
    "subtree_end",
    "image_index",
    "patches",
    "patch_pos",
    "window_seg",
    "full_seg",
)


@pytest.fixture(scope="module")
def gradient():
    """policy -> a function of no arguments: the loss and its gradients, on the block attention."""
    batch = tiny.random_batch(CONFIG, 0, rows=2)
    inputs = {name: jnp.asarray(batch[name]) for name in INPUTS}
    params = tiny.random_params(CONFIG)

    def of(policy):
        model = PolicyModel(CONFIG, remat=policy, attend=Attend("block"))
        loss = jax.value_and_grad(lambda p: jnp.sum(model.apply({"params": p}, inputs) ** 2))
        return lambda: loss(params)

    return of


def count(jaxpr, name: str) -> int:
    """How often a primitive stands in a jaxpr and in those within."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name == name
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            inner = getattr(value, "jaxpr", value)
            found += count(inner, name) if hasattr(inner, "eqns") else 0
    return found


def _is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


QUICK = ("none", "attention", "offload")


@pytest.mark.parametrize(
    "policies", [QUICK, pytest.param(tuple(POLICIES), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_every_policy_computes_the_same(gradient, policies):
    """Loss and all gradients, and "offload" runs where there is host memory, a CPU too."""
    options = {"xla_backend_optimization_level": 0}
    results = {
        policy: jax.jit(gradient(policy)).lower().compile(compiler_options=options)()
        for policy in policies
    }
    loss, grads = results["none"]
    for policy, (other, others) in results.items():
        np.testing.assert_allclose(other, loss, rtol=1e-6, err_msg=policy)
        for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max(), err_msg=policy)


def test_what_is_computed_again(gradient):
    """Attention's forward loop runs once under "none" and "attention", twice under the others;
    "dots" computes fewer products again than "full". One loop more is the backward pass'."""
    loops, products = {}, {}
    for policy in POLICIES:
        jaxpr = jax.make_jaxpr(gradient(policy))().jaxpr
        loops[policy], products[policy] = count(jaxpr, "while"), count(jaxpr, "dot_general")
    once = loops["none"]
    assert loops == {
        "none": once,
        "attention": once,
        "dots": once + 2,
        "full": once + 2,
        "offload": once + 2,
    }  # # a decoder layer and a vision block
    assert products["none"] < products["dots"] < products["full"] == products["offload"]
    assert products["attention"] < products["full"]


def test_offload_needs_host_memory():
    """One line that names the setting, where jax has no such memory; nothing elsewhere."""
    memory = types.SimpleNamespace(kind="device")
    device = types.SimpleNamespace(platform="abacus", addressable_memories=lambda: [memory])
    mesh = types.SimpleNamespace(devices=np.array([device], dtype=object))
    with pytest.raises(UserError, match="model.remat=offload needs pinned_host .* abacus"):
        check_host_memory("offload", mesh)
    check_host_memory("full", mesh)
    memory.kind = "pinned_host"
    check_host_memory("offload", mesh)


def test_settings_and_policies_agree():
    assert set(FIELDS["model.remat"].rule.words) == set(POLICIES)
    with pytest.raises(ValueError, match="remat must be one of"):
        PolicyModel(CONFIG, remat="some").init(jax.random.key(0), {})
