"""Losses of pairs: RPO's arithmetic, stability at both ends, and what a name stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.train.losses.pairwise import (
    LOSSES,
    PairLoss,
    Pairs,
    find_loss,
    log1mexp,
    log_odds,
    odds_ratio,
)


def test_equal_to_rpos_arithmetic_in_float64():
    """RPO's odds_ratio_loss, rewritten in float64: (c-r) - (log1p(-e^c) - log1p(-e^r))."""
    rng = np.random.default_rng(0)
    c, r = -np.exp(rng.uniform(-4, 4, (2, 500)))
    want = (c - r) - (np.log1p(-np.exp(c)) - np.log1p(-np.exp(r)))
    pairs = Pairs(jnp.asarray(c, jnp.float32), jnp.asarray(r, jnp.float32))
    margin = log_odds(pairs.chosen) - log_odds(pairs.rejected)
    np.testing.assert_allclose(margin, want, rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(
        odds_ratio(pairs, 0.1, 0.5), np.logaddexp(0, -want), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize(
    "f, slope", [(log1mexp, lambda x: -1 / np.expm1(-x)), (log_odds, lambda x: -1 / np.expm1(x))]
)
def test_values_and_gradients_are_finite_at_both_ends(f, slope):
    """At -1e-8, 0 and -1e4 (and a nan-prone border): finite; elsewhere the exact derivative."""
    ends = jnp.asarray([-1e-8, 0.0, -1e4, -1e-7, -np.log(2), -1e30], jnp.float32)
    assert np.isfinite(f(ends)).all()
    assert np.isfinite(jax.vmap(jax.grad(f))(ends)).all()
    inside = np.asarray([-1e-3, -0.3, -0.6931, -0.7, -2, -20, -80], np.float32)
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(inside), slope(np.float64(inside)), rtol=1e-4)


OUTSIDE = """
from srpo_jax.train.losses.pairwise import PairLoss

def hinge(pairs, beta, gamma):
    return gamma - beta * (pairs.chosen - pairs.rejected)

Hinge = PairLoss(hinge, needs_reference=True)

def made():
    return Hinge

class Wrong:
    pass
"""


def test_a_name_stands_for_a_loss(tmp_path, monkeypatch):
    """A registered one, a PairLoss of a user's module, or what gives one; all else is refused in
    one line that names the field.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairwise_from_outside.py").write_text(OUTSIDE)
    assert all(find_loss(name) is loss for name, loss in LOSSES.items())
    found = find_loss("pairwise_from_outside:Hinge")
    assert isinstance(found, PairLoss) and found.needs_reference
    assert find_loss("pairwise_from_outside:made") is found
    for spec, said in {
        "simp": "contrasts: odds_ratio, dpo, simpo, ipo; did you mean simpo?",
        "pairwise_from_outside:Wrong": "gives a Wrong; a loss is a PairLoss",
        "pairwise_from_outside:hinge": "calling it raises TypeError: hinge() missing 3",
    }.items():
        with pytest.raises(UserError) as caught:
            find_loss(spec)
        line = str(caught.value)
        assert said in line and line.startswith("objective.contrast=") and "\n" not in line
