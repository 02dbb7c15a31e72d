"""The share of L_exp in a first step's gradient, against the gradients of the train step itself."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.train.gradient_share import GradientNorms
from srpo_jax.train.losses.objective import Objective
from tests.support import multi_device_run as tiny

OBJECTIVES = {
    "odds_ratio": Objective(lambda_exp=0.4, ref_coef=0.5),
    "dpo": Objective(contrast="dpo", normalise="sum", lambda_exp=2.0, ref_coef=0.5),
}


CASES = [("odds_ratio", False, 1), pytest.param("dpo", True, 4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("name, with_lora, accumulate", CASES)
def test_the_norms_are_those_of_steps_with_one_term(name, with_lora, accumulate):
    """Each norm is the grad_norm of a train step that has that term alone, weights included: with
    adapters, and for a contrast with a reference policy, whole and in slices."""
    config, mesh = tiny.tiny_config(), make_mesh(devices=jax.devices()[:1])
    lora = tiny.tiny_lora(config) if with_lora else None
    objective = OBJECTIVES[name]
    alone = []
    for without in ({"lambda_exp": 0.0}, {"ref_coef": 0.0}):
        one = dataclasses.replace(objective, **without)
        state, step = tiny.start(config, mesh, objective=one, lora=lora)
        alone.append(float(step(state, tiny.random_batch(config, 0))[1]["grad_norm"]))
    found = tiny.norms(config, mesh, objective=objective, lora=lora, accumulate=accumulate)
    assert min(alone) > 1e-4
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert found.exp_share == pytest.approx(alone[1] / sum(alone), rel=1e-5)


def test_no_gradient_has_no_share():
    """0 of 0 is no number, and none is made up."""
    assert GradientNorms(0.0, 0.0).exp_share is None
    assert GradientNorms(3.0, 1.0).exp_share == 0.25
