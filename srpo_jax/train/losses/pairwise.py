"""Losses of pairs: each contrasts the safe (chosen) with the unsafe (rejected) branch of a pair.

LOSSES has them by the names that `objective.contrast` takes; a new one is a function and a line
there. A loss from outside this package is named `module:Class`, where Class is a PairLoss or
gives one when called without arguments:

    import jax.numpy as jnp
    from srpo_jax.train.losses.pairwise import PairLoss

    def hinge(pairs, beta, gamma):
        return jnp.maximum(0, gamma - beta * (pairs.chosen - pairs.rejected))

    Hinge = PairLoss(hinge)

in my_losses.py is --config.objective.contrast=my_losses:Hinge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.errors import UserError

FIELD = "objective.contrast"

# The largest log-prob whose odds are taken as they are: above, log_odds goes on along its tangent.
MAX_LOG_PROB = math.log(0.99)
MAX_SLOPE = 1 / -math.expm1(MAX_LOG_PROB)  # of log_odds: 100


class Pairs(NamedTuple):
    """Scores of the two sides of every pair, float32 arrays of one shape: the mean or the sum (as
    `objective.normalise` says) of the log-probs of a side's tokens.
    """

    chosen: jax.Array
    rejected: jax.Array
    reference_chosen: jax.Array | None = None  # by the frozen reference policy, see PairLoss
    reference_rejected: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A contrast.

    fn: (pairs, beta, gamma) -> the loss of every pair, float32 of the shape of pairs.chosen. It is
    traced by jax and differentiated: pure, finite with a finite gradient for scores from -1e4 to 0
    (padding pairs are computed too, and weighted by 0). beta and gamma are the objective's, floats.
    needs_reference: whether fn reads the scores of the reference policy, which costs a second copy
    of the weights and a second forward pass; without it they may be None.
    """

    fn: Callable[[Pairs, float, float], jax.Array]
    needs_reference: bool = False


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, float32.

    Two branches meeting at -log 2 (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
    Each sees only arguments that are its own, so that neither gives the other's gradient a nan.
    """
    x = jnp.asarray(x, jnp.float32)
    near = x > -jnp.log(2.0)
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -0.1))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def log_odds(logp: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of p = exp(logp), RPO eq. 8, float32; above MAX_LOG_PROB its tangent there.

    The slope of the odds is 1 / (1 - p). At p = 1 it is infinite, and shortly before, float32 has
    no digits left for 1 - p: one pair whose rejected side the policy is certain of would decide the
    whole clipped step, or, with a clipped value, have no gradient at all. With the tangent the
    slope rises from 1 to MAX_SLOPE and stays there, also for a log-prob that rounding has put above
    0. Both sides of a pair are treated alike, so that equal sides have a margin of 0.
    """
    logp = jnp.asarray(logp, jnp.float32)
    x = jnp.minimum(logp, MAX_LOG_PROB)
    return x - log1mexp(x) + MAX_SLOPE * (logp - x)


def odds_ratio(pairs: Pairs, beta: float, gamma: float) -> jax.Array:
    """-log_sigmoid(log_odds(chosen) - log_odds(rejected)).

    RPO (arXiv 2410.10858) eqs. 7-9, ORPO (arXiv 2403.07691) eqs. 4-7. No beta, no gamma. The
    gradient of the rejected side is never negative and rises with its score, up to MAX_SLOPE; that
    of the chosen side lies between -MAX_SLOPE and 0.
    """
    return -jax.nn.log_sigmoid(log_odds(pairs.chosen) - log_odds(pairs.rejected))


def dpo(pairs: Pairs, beta: float, gamma: float) -> jax.Array:
    """-log_sigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected))).

    DPO (arXiv 2305.18290) eq. 7: there with sums, so published DPO has normalise=sum. No gamma.
    """
    return -jax.nn.log_sigmoid(beta * _log_ratio(pairs))


def simpo(pairs: Pairs, beta: float, gamma: float) -> jax.Array:
    """-log_sigmoid(beta * (chosen - rejected) - gamma).

    SimPO (arXiv 2405.14734) eq. 6: there with means.
    """
    return -jax.nn.log_sigmoid(beta * (pairs.chosen - pairs.rejected) - gamma)


def ipo(pairs: Pairs, beta: float, gamma: float) -> jax.Array:
    """((chosen - reference_chosen) - (rejected - reference_rejected) - 1 / (2 beta)) ^ 2.

    IPO (arXiv 2310.12036) eq. 17, whose tau is beta here; TRL takes means. No gamma.
    """
    return jnp.square(_log_ratio(pairs) - 1 / (2 * beta))


def _log_ratio(pairs: Pairs) -> jax.Array:
    """How much more the policy prefers the chosen side than the reference policy does."""
    assert pairs.reference_chosen is not None and pairs.reference_rejected is not None
    return (pairs.chosen - pairs.reference_chosen) - (pairs.rejected - pairs.reference_rejected)


LOSSES: dict[str, PairLoss] = {
    "odds_ratio": PairLoss(odds_ratio),
    "dpo": PairLoss(dpo, needs_reference=True),
    "simpo": PairLoss(simpo),
    "ipo": PairLoss(ipo, needs_reference=True),
}


def find_loss(name: str) -> PairLoss:
    """The loss of a name of LOSSES, or of `module:Class` (see the module's docstring).

    Errors: UserError when there is none, or when it is no PairLoss and gives none.
    """
    found = find_registered(name, LOSSES, FIELD)
    if not isinstance(found, PairLoss):
        found = call_factory(found, name, FIELD)
    if not isinstance(found, PairLoss):
        raise UserError(
            f"{FIELD}={name!r} gives a {type(found).__name__}; a loss is a PairLoss, see "
            "srpo_jax/train/losses/pairwise.py"
        )
    return found
