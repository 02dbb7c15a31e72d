"""The objective: published values, stability at both ends, metrics, the reference policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.config.fields import Config, arguments
from srpo_jax.errors import UserError
from srpo_jax.train.losses.objective import (
    PAIR_METRICS,
    Objective,
    finish_metrics,
    needs_reference_policy,
    srpo_loss,
)
from srpo_jax.train.losses.pairwise import LOSSES, PairLoss, Pairs, log_odds, odds_ratio

# chosen, rejected (mean log-probs), log odds ratio, -log sigmoid, 0.3 * that - chosen; float64.
VECTORS = [
    (-0.5, -1.0, 0.974077, 0.320300, 0.596090),
    (-1.0, -0.5, -0.974077, 1.294377, 1.388313),
    (-0.05, -2.0, 4.825215, 0.007993, 0.052398),
    (-1.2, -1.2, 0.0, 0.693147, 1.407944),
]


def _batch(chosen, rejected, lengths=(1, 1), weight=1.0):
    """One row of two one-segment sequences, the first of which is also the reference path."""
    n = sum(lengths)
    batch = {
        "target_segment": np.repeat([0, 1], lengths)[None].astype(np.int32),
        "seq_segments": np.eye(2, dtype=np.float32)[None],
        "seq_len": np.asarray([lengths], np.float32),
        "ref_weight": np.asarray([[1, 0]], np.float32),
        "pair_chosen": np.zeros((1, 1), np.int32),
        "pair_rejected": np.ones((1, 1), np.int32),
        "pair_weight": np.full((1, 1), weight, np.float32),
    }
    logps = np.repeat([chosen, rejected], lengths).astype(np.float32).reshape(1, n)
    return logps, batch


def _loss(*args):
    return srpo_loss(*args)[0]


@pytest.mark.parametrize("chosen, rejected, ratio, term, total", VECTORS)
def test_published_vectors_to_six_decimals(chosen, rejected, ratio, term, total):
    """log odds ratio, -log sigmoid and the total with lambda 0.3, also with 3 and 5 tokens."""
    pairs = Pairs(jnp.float32(chosen), jnp.float32(rejected))
    assert log_odds(pairs.chosen) - log_odds(pairs.rejected) == pytest.approx(ratio, abs=1e-6)
    assert odds_ratio(pairs, 0.1, 0.5) == pytest.approx(term, abs=1e-6)
    for lengths in ((1, 1), (3, 5)):
        value, metrics = srpo_loss(*_batch(chosen, rejected, lengths), Objective())
        assert value == pytest.approx(total, abs=1e-6)
        assert metrics["loss_ref"] == pytest.approx(-chosen, abs=1e-6)


@pytest.mark.parametrize("logp", [-1e-8, 0.0, -1e4])
@pytest.mark.parametrize("contrast", LOSSES)
def test_loss_and_gradient_are_finite_at_both_ends(logp, contrast):
    """A side that is certain, or as good as impossible, gives a finite loss and gradient."""
    objective = Objective(contrast=contrast)
    for sides in ((logp, -1.0), (-1.0, logp), (logp, logp)):
        logps, batch = _batch(*sides)
        loss, grad = jax.value_and_grad(_loss)(logps, batch, objective, logps)
        assert np.isfinite(loss) and np.isfinite(grad).all()


def test_losses_push_the_chosen_up_and_the_rejected_down():
    """The sign of the gradient, for every contrast."""
    logps, batch = _batch(-1.5, -1.0)
    for contrast in LOSSES:
        objective = Objective(contrast=contrast, ref_coef=0.0)
        grad = jax.grad(_loss)(logps, batch, objective, logps - 0.1)
        assert grad[0, 0] < 0 < grad[0, 1]


def test_known_values_of_dpo_simpo_ipo_and_sums():
    """Hand-computed: chosen 2 tokens of -1, rejected 4 of -2; reference policy -1.5 everywhere."""
    logps, batch = _batch(-1.0, -2.0, lengths=(2, 4))
    frozen = np.full_like(logps, -1.5)

    def exp_loss(**switches):
        return float(srpo_loss(logps, batch, Objective(**switches), frozen)[1]["loss_exp"])

    def log_sigmoid_loss(x):
        return pytest.approx(float(np.logaddexp(0, -x)), rel=1e-6)

    # sums: -2 and -8 against -3 and -6; means: -1 and -2 against -1.5 and -1.5
    assert exp_loss(contrast="dpo", normalise="sum", beta=0.1) == log_sigmoid_loss(0.1 * (1 + 2))
    assert exp_loss(contrast="dpo", beta=0.1) == log_sigmoid_loss(0.1 * (0.5 + 0.5))
    assert exp_loss(contrast="simpo", beta=2.0, gamma=0.5) == log_sigmoid_loss(2 * 1 - 0.5)
    assert exp_loss(contrast="ipo", beta=0.1) == pytest.approx((1 - 5) ** 2)
    odds = [np.log(np.exp(x) / (1 - np.exp(x))) for x in (-2.0, -8.0)]
    assert exp_loss(normalise="sum") == log_sigmoid_loss(odds[0] - odds[1])


def test_metrics_are_weighted_sums_and_finish_to_weighted_means():
    """Rewards are beta * logps, less the reference policy's for DPO; accuracies are a share."""
    rows = [_batch(-1.0, -2.0, (2, 4), 0.5), _batch(-3.0, -2.0, (2, 4), 0.25)]
    logps = np.concatenate([row[0] for row in rows])
    batch = {k: np.concatenate([row[1][k] for row in rows]) for k in rows[0][1]}
    _, sums = srpo_loss(logps, batch, Objective(beta=0.1))
    done = finish_metrics(sums)
    assert set(done) == {"loss", "loss_ref", "loss_exp", *PAIR_METRICS}
    want = {
        "logps/chosen": -5 / 3,
        "logps/rejected": -2,
        "rewards/chosen": -0.5 / 3,
        "rewards/rejected": -0.2,
        "rewards/margins": 0.1 / 3,
        "rewards/accuracies": 2 / 3,
    }
    assert {k: float(done[k]) for k in want} == pytest.approx(want)
    dpo = Objective(contrast="dpo", normalise="sum")
    done = finish_metrics(srpo_loss(logps, batch, dpo, np.full_like(logps, -1.5))[1])
    assert float(done["rewards/margins"]) == pytest.approx((2 * 0.3 + -0.1) / 3)
    parts = [srpo_loss(*row, Objective(beta=0.1))[1] for row in rows]
    for name in sums:  # slices add up: accumulation is exact
        assert float(sums[name]) == pytest.approx(float(sum(part[name] for part in parts)))


def test_equal_sides_are_not_counted_as_right():
    """A policy that cannot tell the sides apart has an accuracy of 0 and a loss of log 2."""
    _, metrics = srpo_loss(*_batch(-1.0, -1.0), Objective())
    assert float(metrics["rewards/accuracies"]) == 0
    assert float(metrics["loss_exp"]) == pytest.approx(np.log(2))


def test_the_contrast_is_left_out_when_it_weighs_nothing():
    """lambda_exp=0 is SFT and asks for no reference policy; any other weight counts, 1 too."""
    logps, batch = _batch(-1.0, -2.0)
    loss, metrics = srpo_loss(logps, batch, Objective(contrast="ipo", lambda_exp=0.0))
    assert float(loss) == 1 and float(metrics["loss_exp"]) == 0
    loss, metrics = srpo_loss(logps, batch, Objective(lambda_exp=1.0))
    assert float(loss) == pytest.approx(1 + float(metrics["loss_exp"])) and float(loss) > 1.1


def test_an_objective_is_a_static_argument():
    """Equal switches are equal keys, as jax.jit wants of one; the defaults are the config's."""
    assert Objective(**arguments(Objective, Config().objective)) == Objective()
    assert len({Objective(), Objective(beta=0.1), Objective(beta=0.2)}) == 2


def test_padding_and_missing_pairs_change_nothing():
    """Padding targets, sequences and pairs add nothing; a batch without pairs has no nan."""
    logps, batch = _batch(-1.0, -2.0, (2, 2))
    padded = {
        "target_segment": np.pad(batch["target_segment"], ((0, 0), (0, 3)), constant_values=5),
        "seq_segments": np.pad(batch["seq_segments"], ((0, 0), (0, 2), (0, 3))),
        "seq_len": np.pad(batch["seq_len"], ((0, 0), (0, 2)), constant_values=1),
        "ref_weight": np.pad(batch["ref_weight"], ((0, 0), (0, 2))),
        **{
            k: np.pad(batch[k], ((0, 0), (0, 2)))
            for k in ("pair_chosen", "pair_rejected", "pair_weight")
        },
    }
    longer = np.pad(logps, ((0, 0), (0, 3)), constant_values=-7)
    run = jax.value_and_grad(_loss)
    want, want_grad = run(logps, batch, Objective())
    got, grad = run(longer, padded, Objective())
    assert got == want
    np.testing.assert_array_equal(grad, np.pad(want_grad, ((0, 0), (0, 3))))
    none = {**batch, "pair_weight": np.zeros((1, 1), np.float32)}
    loss, sums = srpo_loss(logps, none, Objective())
    assert float(loss) == 1.0
    assert all(float(finish_metrics(sums)[name]) == 0 for name in PAIR_METRICS)


def test_reference_policy_is_asked_for_exactly_where_needed():
    """DPO and IPO need it, and say so when it is missing; unknown switches are refused."""
    needed = [name for name in LOSSES if needs_reference_policy(Objective(contrast=name))]
    assert needed == ["dpo", "ipo"]
    assert not needs_reference_policy(Objective(contrast="dpo", lambda_exp=0.0))
    with pytest.raises(ValueError, match="reference policy"):
        srpo_loss(*_batch(-1.0, -2.0), Objective(contrast="ipo"))
    with pytest.raises(UserError, match="objective.contrast='orpo' does not exist"):
        Objective(contrast="orpo")
    with pytest.raises(ValueError, match="is not one of"):
        Objective(normalise="avg")


def test_a_loss_gives_one_number_for_each_pair(monkeypatch):
    """A loss of one's own that takes the mean itself is refused: it would be weighted wrongly."""
    mean = PairLoss(lambda pairs, beta, gamma: jnp.mean(pairs.rejected - pairs.chosen))
    monkeypatch.setitem(LOSSES, "mean", mean)
    with pytest.raises(UserError, match="contrast='mean' gives losses of shape"):
        srpo_loss(*_batch(-1.0, -2.0), Objective(contrast="mean"))
