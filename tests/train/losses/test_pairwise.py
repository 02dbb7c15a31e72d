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


def exact_log_odds(x):
    """(value, slope) in float64: log(p / (1 - p)), from p = 0.99 on the tangent there."""
    at = np.minimum(np.float64(x), np.log(0.99))
    slope = -1 / np.expm1(at)
    return at - np.log(-np.expm1(at)) + slope * (x - at), slope


def gradients(chosen, rejected):
    """(losses, d loss / d chosen, d loss / d rejected) of odds_ratio, of arrays of one shape."""

    def total(c, r):
        losses = odds_ratio(Pairs(c, r), 0.1, 0.5)
        return jnp.sum(losses), losses

    sides = [jnp.asarray(side, jnp.float32) for side in (chosen, rejected)]
    found, losses = jax.jit(jax.grad(total, (0, 1), has_aux=True))(*sides)
    return np.asarray(losses), *map(np.asarray, found)


LOGPS = np.asarray([-1e-8, -5e-8, -1e-7, -1e-3, -1e-1, -1.0, -10.0], np.float32)
BORDERS = np.asarray([0.0, -0.0100503, -np.log(2), -0.7, -80.0, -1e4], np.float32)


def test_log_odds_and_their_slope_are_those_of_float64():
    """Also where float32 has no digits left for 1 - p, and at the borders of the formulas."""
    x = np.concatenate([LOGPS, BORDERS])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_odds)))(x)
    want, want_slope = exact_log_odds(np.float64(x))
    np.testing.assert_allclose(value, want, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=2e-5)


def test_log1mexp_is_that_of_float64():
    """Value and slope on both branches and where they meet."""
    inside = np.asarray(
        [-1e-7, -1e-3, -0.3, -0.6931, -0.7, -2, -8, -20, -80, -1e4, -1e30], np.float32
    )
    wide = np.float64(inside)
    with np.errstate(over="ignore"):
        slopes = -1 / np.expm1(-wide)
    near = wide > -1
    values = np.where(near, np.log(-np.expm1(np.where(near, wide, -1))), np.log1p(-np.exp(wide)))
    np.testing.assert_allclose(log1mexp(inside), values, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(jax.vmap(jax.grad(log1mexp))(inside), slopes, rtol=1e-4, atol=1e-30)


def test_odds_ratio_and_its_gradient_are_those_of_float64():
    """Of both sides, also of a pair whose sides the policy is certain of."""
    chosen, rejected = np.meshgrid(LOGPS, LOGPS)
    loss, by_chosen, by_rejected = gradients(chosen, rejected)
    (c, slope_c), (r, slope_r) = map(exact_log_odds, np.asarray([chosen, rejected], np.float64))
    push = 1 / (1 + np.exp(c - r))
    np.testing.assert_allclose(loss, np.logaddexp(0, r - c), rtol=2e-5)
    np.testing.assert_allclose(by_chosen, -push * slope_c, rtol=1e-4)
    np.testing.assert_allclose(by_rejected, push * slope_r, rtol=1e-4)
    np.testing.assert_allclose(np.diag(loss), np.log(2), rtol=1e-6)


def test_the_more_wrong_a_pair_the_stronger_its_rejected_side_is_pushed():
    """d loss / d rejected never falls as the rejected side rises, to the very end and past it
    (rounding can put a log-prob above 0); it is bounded and nowhere near the end 0.
    """
    rejected = np.concatenate([-np.geomspace(20, 1e-9, 4000), [0.0, 1e-6]])
    for chosen in (-1e-9, -1e-3, -1.0, -10.0):
        found = gradients(np.full_like(rejected, chosen), rejected)[2]
        assert (np.diff(found) >= -1e-5 * found[1:]).all()
        assert found.max() <= found[-1] * 1.00001 <= 100.01
        assert found[-1] > (90 if chosen <= -1 else 30)


def test_the_chosen_side_is_pushed_up_until_it_is_certain():
    """Its gradient is bounded as well, and fades where the pair is right, but never vanishes."""
    chosen = np.asarray([-20, -1, -0.1, -1e-3, -1e-8, 0], np.float32)
    found = gradients(chosen, np.full_like(chosen, -1.0))[1]
    assert (found < -0.1).all() and (found > -2).all()
    assert gradients(np.zeros(1), np.zeros(1))[1] == pytest.approx(-50)


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
