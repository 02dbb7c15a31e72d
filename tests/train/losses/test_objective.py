"""The objective: published values, stability at both ends, metrics, and target log-probs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.train.losses.objective import (
    PAIR_METRICS,
    Objective,
    finish_metrics,
    log1mexp,
    log_odds,
    needs_reference_policy,
    pair_terms,
    srpo_loss,
    target_logps,
)

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


@pytest.mark.parametrize("chosen, rejected, ratio, term, total", VECTORS)
def test_published_vectors_to_six_decimals(chosen, rejected, ratio, term, total):
    """log odds ratio, -log sigmoid and the total with lambda 0.3, also with 3 and 5 tokens."""
    one = jnp.ones(1)
    loss, margin = pair_terms(Objective(), chosen * one, rejected * one, one, one)
    assert margin[0] == pytest.approx(ratio, abs=1e-6)
    assert loss[0] == pytest.approx(term, abs=1e-6)
    for lengths in ((1, 1), (3, 5)):
        value, metrics = srpo_loss(*_batch(chosen, rejected, lengths), Objective())
        assert value == pytest.approx(total, abs=1e-6)
        assert metrics["loss_ref"] == pytest.approx(-chosen, abs=1e-6)


def test_equal_to_rpos_arithmetic_in_float64():
    """RPO's odds_ratio_loss, rewritten in float64: (c-r) - (log1p(-e^c) - log1p(-e^r))."""
    rng = np.random.default_rng(0)
    c, r = -np.exp(rng.uniform(-4, 4, (2, 500)))
    want = (c - r) - (np.log1p(-np.exp(c)) - np.log1p(-np.exp(r)))
    loss, margin = pair_terms(
        Objective(), *(jnp.asarray(x, jnp.float32) for x in (c, r, np.ones(500), np.ones(500)))
    )
    np.testing.assert_allclose(margin, want, rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(loss, np.logaddexp(0, -want), rtol=2e-5, atol=2e-5)


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


def _value_and_grad(logps, batch, objective, frozen):
    return jax.value_and_grad(lambda x: srpo_loss(x, batch, objective, frozen)[0])(logps)


@pytest.mark.parametrize("logp", [-1e-8, 0.0, -1e4])
@pytest.mark.parametrize("contrast", ["odds_ratio", "dpo", "simpo", "ipo"])
def test_loss_and_gradient_are_finite_at_both_ends(logp, contrast):
    """A side that is certain, or as good as impossible, gives a finite loss and gradient."""
    objective = Objective(contrast=contrast)
    for sides in ((logp, -1.0), (-1.0, logp), (logp, logp)):
        logps, batch = _batch(*sides)
        loss, grad = _value_and_grad(logps, batch, objective, logps)
        assert np.isfinite(loss) and np.isfinite(grad).all()


def test_losses_push_the_chosen_up_and_the_rejected_down():
    """The sign of the gradient, for every contrast."""
    logps, batch = _batch(-1.5, -1.0)
    for contrast in ("odds_ratio", "dpo", "simpo", "ipo"):
        objective = Objective(contrast=contrast, ref_coef=0.0)
        _, grad = _value_and_grad(logps, batch, objective, logps - 0.1)
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


def test_padding_and_missing_pairs_change_nothing():
    """Padding targets, sequences and pairs add nothing; a batch without pairs has no nan."""
    logps, batch = _batch(-1.0, -2.0, (2, 2))
    padded = {
        "target_segment": np.pad(batch["target_segment"], ((0, 0), (0, 3)), constant_values=4),
        "seq_segments": np.pad(batch["seq_segments"], ((0, 0), (0, 2), (0, 2))),
        "seq_len": np.pad(batch["seq_len"], ((0, 0), (0, 2)), constant_values=1),
        "ref_weight": np.pad(batch["ref_weight"], ((0, 0), (0, 2))),
        **{
            k: np.pad(batch[k], ((0, 0), (0, 2)))
            for k in ("pair_chosen", "pair_rejected", "pair_weight")
        },
    }
    longer = np.pad(logps, ((0, 0), (0, 3)), constant_values=-7)
    run = jax.value_and_grad(lambda x, b: srpo_loss(x, b, Objective())[0])
    (want, want_grad), (got, grad) = run(logps, batch), run(longer, padded)
    assert got == want
    np.testing.assert_array_equal(grad, np.pad(want_grad, ((0, 0), (0, 3))))
    none = {**batch, "pair_weight": np.zeros((1, 1), np.float32)}
    loss, sums = srpo_loss(logps, none, Objective())
    assert float(loss) == 1.0
    assert all(float(finish_metrics(sums)[name]) == 0 for name in PAIR_METRICS)


def test_reference_policy_is_asked_for_exactly_where_needed():
    """DPO and IPO need it, and say so when it is missing; unknown switches are refused."""
    needed = [
        c
        for c in ("odds_ratio", "dpo", "simpo", "ipo")
        if needs_reference_policy(Objective(contrast=c))
    ]
    assert needed == ["dpo", "ipo"]
    assert not needs_reference_policy(Objective(contrast="dpo", lambda_exp=0.0))
    with pytest.raises(ValueError, match="reference policy"):
        srpo_loss(*_batch(-1.0, -2.0), Objective(contrast="ipo"))
    for wrong in ({"contrast": "orpo"}, {"normalise": "avg"}):
        with pytest.raises(ValueError, match="is not one of"):
            Objective(**wrong)


def _random_targets(rng, b, t, d, v, n):
    batch = {
        "tokens": rng.integers(0, v - 3, (b, t)).astype(np.int32),
        "target_pos": rng.integers(0, t, (b, n)).astype(np.int32),
        "target_parent": rng.integers(0, t, (b, n)).astype(np.int32),
    }
    hidden = rng.standard_normal((b, t, d)).astype(np.float32)
    return hidden, rng.standard_normal((d, v)).astype(np.float32), batch


@pytest.mark.parametrize("chunk", [5, 7, 14, 512])
@pytest.mark.parametrize("valid_vocab", [None, 17])
def test_target_logps_equal_full_logits(chunk, valid_vocab):
    """Any chunk, dividing or not: the log-softmax of the parent's logits; gradients too."""
    hidden, head, batch = _random_targets(np.random.default_rng(1), 2, 9, 6, 20, 14)
    cts = np.random.default_rng(2).standard_normal((2, 14)).astype(np.float32)

    def full(hidden, head):
        logits = (hidden @ head)[:, :, :valid_vocab]
        rows = np.arange(2)[:, None]
        labels = batch["tokens"][rows, batch["target_pos"]]
        return jax.nn.log_softmax(logits)[rows, batch["target_parent"], labels]

    want, pull = jax.vjp(full, hidden, head)
    got, pull_chunked = jax.vjp(
        functools.partial(target_logps, batch=batch, chunk=chunk, valid_vocab=valid_vocab),
        hidden,
        head,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(pull_chunked(cts), pull(cts)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_target_logps_never_hold_all_logits():
    """bfloat16 states: float32 log-probs; no buffer of [B, N, V], forward or backward."""
    hidden, head, batch = _random_targets(np.random.default_rng(3), 2, 9, 6, 40, 64)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head)
    logps = functools.partial(target_logps, batch=batch, chunk=16)
    assert logps(hidden, head).dtype == jnp.float32
    text = (
        jax.jit(jax.grad(lambda h, w: logps(h, w).sum(), argnums=(0, 1)))
        .lower(hidden, head)
        .compile()
        .as_text()
    )
    assert "f32[2,16,40]" in text and "f32[2,64,10]" in text
    assert not any(f"[{shape}]" in text for shape in ("2,64,40", "4,2,16,40"))


@pytest.mark.parametrize("axis", [None, "tensor"])
def test_target_logps_peak_is_a_few_chunks_of_logits(axis):
    """Temporaries of loss and gradients: below four chunks of float32 logits, and four times the
    targets add states, not logits; also under shard_map with the vocabulary on a mesh axis."""
    d, v, chunk = 8, 8192, 64
    mesh = jax.make_mesh((1,), ("tensor",), (jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec(None, axis)
    whole = jax.sharding.PartitionSpec()

    def temporaries(n):
        def loss(hidden, head, batch):
            run = functools.partial(target_logps, chunk=chunk, vocab_axis=axis)
            if axis:
                run = jax.shard_map(run, mesh=mesh, in_specs=(whole, split, whole), out_specs=whole)
            return run(hidden, head, batch).sum()

        ints = jax.ShapeDtypeStruct((1, n), jnp.int32)
        batch = {name: ints for name in ("tokens", "target_pos", "target_parent")}
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, n, d), (d, v))]
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(256), temporaries(1024)
    assert max(few, many) < 4 * chunk * v * 4
    assert many - few < 16 * (1024 - 256) * d * 4


def test_the_heads_gradient_is_summed_in_float32():
    """4096 targets in bfloat16: each entry is the exact sum rounded once, whatever the chunk."""
    rng = np.random.default_rng(4)
    hidden, head, batch = _random_targets(rng, 1, 4096, 4, 16, 4096)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    run = jax.grad(lambda w, x, chunk: target_logps(x, w, batch, chunk=chunk).sum())
    exact = run(head.astype(jnp.float32), hidden.astype(jnp.float32), 4096)
    got = np.asarray(run(head, hidden, 64), np.float32)
    assert np.linalg.norm(got - exact) < 4e-3 * np.linalg.norm(exact)
