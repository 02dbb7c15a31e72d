"""Target log-probs: equal to those of all logits, which never exist at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.train.losses.target_logps import target_logps


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
