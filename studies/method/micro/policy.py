"""The policy of the micro world: a decoder of two layers, its sampler, and how it is trained.

Trees, pairs, rows and the loss are the project's own (srpo_jax/pack, train/losses). Only the
forward pass is not: paths are so short here that each is computed by itself, which the project
proves to be the same (tests/pack/test_tree_equals_pairwise.py), and a target's log-prob is taken
from one of the paths that it lies on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srpo_jax.train.losses.objective import Objective, needs_reference_policy, srpo_loss
from studies.method.micro import world

WIDTH, LAYERS, HEADS = 64, 2, 4
DEPTH = world.PROMPT + world.LENGTH
BUCKET = 256  # paths are sampled in multiples of so many, so that few programs are compiled
Params = dict[str, Any]


def init(seed: int) -> Params:
    """Weights from nothing, float32."""
    keys = iter(jax.random.split(jax.random.key(seed), 16))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) * 0.5 / np.sqrt(shape[-2])

    return {
        "embed": jax.random.normal(next(keys), (world.VOCABULARY, WIDTH)) * 0.1,
        "place": jax.random.normal(next(keys), (DEPTH, WIDTH)) * 0.1,
        "layers": {
            "qkv": normal(LAYERS, WIDTH, 3 * WIDTH),
            "out": normal(LAYERS, WIDTH, WIDTH),
            "up": normal(LAYERS, WIDTH, 4 * WIDTH),
            "down": normal(LAYERS, 4 * WIDTH, WIDTH),
        },
        "head": normal(WIDTH, world.VOCABULARY),
    }


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def _heads(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS)


def _block(x: jax.Array, layer: Params, attend: Any) -> tuple[jax.Array, Any]:
    q, k, v = jnp.split(_norm(x) @ layer["qkv"], 3, axis=-1)
    seen, kept = attend(_heads(q), _heads(k), _heads(v))
    x = x + seen.reshape(x.shape) @ layer["out"]
    return x + jax.nn.gelu(_norm(x) @ layer["up"]) @ layer["down"], kept


def _all_logps(params: Params, paths: jax.Array) -> jax.Array:
    """int32 [n, DEPTH] prompts with their paths -> float32 [n, DEPTH - 1, VOCABULARY]: log p of
    every token at the place after each, but for the last.
    """
    sees = jnp.tril(jnp.ones((DEPTH, DEPTH), bool))

    def attend(q, k, v):
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(WIDTH // HEADS)
        weights = jax.nn.softmax(jnp.where(sees, scores, -1e9))
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v), None

    x = params["embed"][paths] + params["place"]
    x, _ = jax.lax.scan(lambda x, layer: _block(x, layer, attend), x, params["layers"])
    return jax.nn.log_softmax(_norm(x[:, :-1]) @ params["head"])


def token_logps(params: Params, paths: jax.Array) -> jax.Array:
    """int32 [n, DEPTH] prompts with their paths -> float32 [n, DEPTH]: log p of each token given
    those before it; of the first one, 0.
    """
    logps = _all_logps(params, paths)
    found = jnp.take_along_axis(logps, paths[:, 1:, None], 2)[..., 0]
    return jnp.pad(found, ((0, 0), (1, 0)))


def target_logps(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """float32 [B, N]: of the targets of packed rows, each found on one of the paths it lies on."""
    rows, paths, depth = batch["paths"].shape
    found = token_logps(params, batch["paths"].reshape(rows * paths, depth))
    return jnp.take_along_axis(found.reshape(rows, paths * depth), batch["on_path"], 1)


@jax.jit
def _entropies(params: Params, paths: jax.Array) -> jax.Array:
    logps = _all_logps(params, paths)
    return -jnp.sum(jnp.exp(logps) * logps, -1)


def entropies(
    params: Params, asked: Sequence[world.Question], paths: Sequence[np.ndarray]
) -> np.ndarray:
    """float32 [n, 23], nats: the policy's, over each token of n paths given those before it."""
    whole = np.stack([np.concatenate([q.prompt, path]) for q, path in zip(asked, paths)])
    padded = np.zeros((-(-len(whole) // BUCKET) * BUCKET, DEPTH), np.int32)
    padded[: len(whole)] = whole
    return np.asarray(_entropies(params, padded))[: len(whole), world.PROMPT - 1 :]


def divergence(logps: jax.Array, drawn: jax.Array) -> jax.Array:
    """Of tokens that were drawn with log-probs `drawn`, an estimate each of the divergence of the
    policy that gives them `logps` from the one that drew them, KL(drawer || policy): at least 0,
    and with a gradient of 0 where both are one (the estimate k3 of Schulman, "Approximating KL
    divergence", 2020). A token that became e^5 times as likely counts as that.
    """
    change = jnp.minimum(logps - drawn, 5.0)
    return jnp.expm1(change) - change


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"))
def _step(params, state, base, batch, rate, lam, share, objective, optimizer):
    def kept(params):
        if "kept" not in batch:
            return 0.0
        paths = batch["kept"].reshape(-1, DEPTH)
        found = divergence(token_logps(params, paths), batch["kept_logp"].reshape(-1, DEPTH))
        return jnp.sum(found * batch["kept_weight"].reshape(-1, DEPTH))

    def term(params, objective):
        return srpo_loss(target_logps(params, batch), batch, objective)[0]

    def loss_of(params):
        logps = target_logps(params, batch)
        frozen = None
        if needs_reference_policy(objective):
            frozen = jax.lax.stop_gradient(target_logps(base, batch))
        _, sums = srpo_loss(logps, batch, objective, frozen)
        weighted = {**batch, "pair_weight": lam * batch["pair_weight"]}
        return srpo_loss(logps, weighted, objective, frozen)[0] + kept(params), sums

    if share is None:
        grads, sums = jax.grad(loss_of, has_aux=True)(params)
    else:
        sums = {}
        taught = jax.grad(term)(params, dataclasses.replace(objective, lambda_exp=0.0))
        contrast = jax.grad(term)(params, dataclasses.replace(objective, ref_coef=0.0))
        size = optax.global_norm(contrast)
        scale = share * optax.global_norm(taught) / jnp.maximum(size, 1e-9)
        grads = jax.tree.map(lambda a, b: a + scale * b, taught, contrast)
    updates, state = optimizer.update(grads, state, params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    return optax.apply_updates(params, updates), state, sums


_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.95))


def train(
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    steps: int,
    rate: float,
    *,
    lam: float = 0.0,
    share: float = 0.0,
    objective: Objective | None = None,
    warmup: int = 5,
) -> Params:
    """`steps` updates by AdamW's rule without decay; the rate rises over `warmup` steps and falls
    by a cosine. lam: the weight of L_exp (objective.lambda_exp is 1, so that one program does for
    all weights). share: not lam but the norms of the gradients decide, see Recipe. Of a contrast
    with a reference policy that is `params` as given.
    """
    state, base = _OPTIMIZER.init(params), params
    part = jnp.float32(share) if share else None
    objective = objective or Objective(lambda_exp=1.0)
    for step, batch in zip(range(steps), batches):
        warm = min(1.0, (step + 1) / warmup)
        now = rate * warm * 0.5 * (1 + np.cos(np.pi * step / steps))
        params, state, _ = _step(
            *(params, state, base, batch, jnp.float32(now), jnp.float32(lam), part),
            objective,
            _OPTIMIZER,
        )
    return params


@jax.jit
def _sample(params, given, lengths, keys, temperature):
    """given int32 [n, DEPTH], of which the first `lengths` are kept -> (tokens, log-probs)."""
    n = len(given)
    shape = (LAYERS, n, DEPTH, HEADS, WIDTH // HEADS)

    def advance(carry, t):
        token, caches = carry
        x = params["embed"][token] + params["place"][t]
        kept = []
        for number in range(LAYERS):
            layer = jax.tree.map(lambda w, number=number: w[number], params["layers"])

            def attend(q, k, v, number=number):
                keys_, values = (
                    jax.lax.dynamic_update_index_in_dim(cache[number], new, t, 1)
                    for cache, new in zip(caches, (k, v))
                )
                scores = jnp.einsum("nhd,nthd->nht", q, keys_) / np.sqrt(WIDTH // HEADS)
                scores = jnp.where(jnp.arange(DEPTH) <= t, scores, -1e9)
                return jnp.einsum("nht,nthd->nhd", jax.nn.softmax(scores), values), (keys_, values)

            x, cache = _block(x, layer, attend)
            kept.append(cache)
        caches = tuple(jnp.stack(parts) for parts in zip(*kept))
        logits = _norm(x) @ params["head"]
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, t), logits[0].shape))
        drawn = jnp.argmax(logits + temperature * noise(keys), -1).astype(jnp.int32)
        chosen = jnp.where(t + 1 < lengths, given[:, jnp.minimum(t + 1, DEPTH - 1)], drawn)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], 1)[:, 0]
        return (chosen, caches), (chosen, logp)

    empty = (jnp.zeros(shape), jnp.zeros(shape))
    _, (tokens, logps) = jax.lax.scan(advance, (given[:, 0], empty), jnp.arange(DEPTH - 1))
    return tokens.T, logps.T


def sample(
    params: Params,
    asked: Sequence[world.Question],
    prefixes: Sequence[np.ndarray],
    seed: int,
    *,
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(whole paths int32 [n, 23], log-probs of their tokens float32 [n, 23]): of each question one
    that begins with its prefix. Draw i is a function of (params, question, prefix, seed, i).
    """
    n = len(asked)
    padded = -(-n // BUCKET) * BUCKET
    given = np.zeros((padded, DEPTH), np.int32)
    lengths = np.full(padded, world.PROMPT)
    for i, (question, prefix) in enumerate(zip(asked, prefixes)):
        given[i, : world.PROMPT] = question.prompt
        given[i, world.PROMPT : world.PROMPT + len(prefix)] = prefix
        lengths[i] += len(prefix)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(padded))
    tokens, logps = _sample(params, given, lengths, keys, jnp.float32(temperature))
    first = world.PROMPT - 1
    return np.asarray(tokens)[:n, first:], np.asarray(logps)[:n, first:]


def mixed(params: Params, base: Params, share: float) -> Params:
    """Weights between two policies: `share` of the base's."""
    return jax.tree.map(lambda p, b: (1 - share) * p + share * b, params, base)
