"""One token from a row of logits: penalties, temperature, filters, and the draw itself.

The order is that of transformers' logits processors: repetition and presence penalty, temperature,
top_k, top_p, min_p. Nothing is sorted: what a filter keeps is everything from some logit up, and
that logit is found by bisection over the bits of a float32, exactly.

The draw needs two uniform numbers a token, functions of the branch's seed and the token's number.
One is looked up in the cumulative weights of blocks of the vocabulary, the other in those of the
ids of that block. So a vocabulary that is split over devices sends sums of blocks.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCKS = 128  # of the vocabulary, at most
LEAST_BLOCKS = 16
_SIGN = np.uint32(1 << 31)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature: of the softmax; 0 takes the likeliest token.

    top_k: of the likeliest ids, 0 for all. top_p: the fewest ids whose probabilities sum to it.
    min_p: ids at least so likely, in parts of the likeliest one's probability. repetition_penalty:
    the logit of an id that stands in the prompt or was drawn is divided by it, or multiplied when
    negative (CTRL, arXiv 1909.05858). presence_penalty: subtracted from the logit of an id that was
    drawn. Ids of equal logit are kept or dropped together.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not (
            self.temperature >= 0
            and 0 < self.top_p <= 1
            and self.top_k >= 0
            and 0 <= self.min_p <= 1
            and self.repetition_penalty > 0
        ):
            raise ValueError(f"no way to sample: {self}")

    @property
    def remembers(self) -> bool:
        """Whether a draw depends on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0


class OwnSampling(NamedTuple):
    """`Sampling` where every branch has its own: temperature and top_p, float32 [...] each. A draw
    is that of a Sampling with the same two, whatever those of the other branches are."""

    temperature: Any
    top_p: Any


class Seen(NamedTuple):
    """The ids that stand before a token, bool [..., V] each: in prompt and prefix, and drawn."""

    before: jax.Array
    drawn: jax.Array


def allowed_ids(vocabulary: int, padded: int, blocked: np.ndarray) -> jax.Array:
    """bool [padded]: the ids that may be sampled."""
    ids = jnp.arange(padded)
    return ~jnp.isin(ids, blocked) & (ids < vocabulary)


def draw(
    logits: jax.Array,
    allowed: jax.Array,
    seeds: jax.Array,
    number: jax.Array,
    sampling: Sampling | OwnSampling,
    seen: Seen | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Token `number` of every branch, int32 [...], and its log-probability, float32 [...].

    logits: float32 [..., V]; allowed: bool [V]; seeds: uint32 [..., 2]; number: int32 [...], from
    0. seen: needed when sampling.remembers. The log-probability is that of the plain softmax over
    the allowed ids.
    """
    with jax.named_scope("draw"):
        plain = jnp.where(allowed, logits, -jnp.inf)
        if isinstance(sampling, OwnSampling):
            token = _own_token(plain, seeds, number, sampling)
        else:
            wanted = plain if seen is None else _penalised(plain, seen, sampling)
            if sampling.temperature == 0:
                token = jnp.argmax(wanted, axis=-1)
            else:
                wanted = _filtered(wanted / sampling.temperature, sampling)
                token = _inverse(wanted, _uniform(seeds, number))
        chosen = jnp.take_along_axis(plain, token[..., None], axis=-1)[..., 0]
        return token.astype(jnp.int32), chosen - jax.nn.logsumexp(plain, axis=-1)


def _own_token(
    logits: jax.Array, seeds: jax.Array, number: jax.Array, sampling: OwnSampling
) -> jax.Array:
    """Greedy where the temperature is 0. Who wants no draw, or no top_p, pays for none if nobody
    beside it does."""
    temperature, top_p = sampling
    greedy = jnp.argmax(logits, axis=-1)

    def drawn() -> jax.Array:
        warm = logits / jnp.where(temperature > 0, temperature, 1)[..., None]

        def filtered() -> jax.Array:
            kept = _from_threshold(warm, jax.nn.softmax(warm, axis=-1), top_p)
            return jnp.where((top_p < 1)[..., None], kept, warm)

        return _inverse(
            jax.lax.cond(jnp.any(top_p < 1), filtered, lambda: warm), _uniform(seeds, number)
        )

    token = jax.lax.cond(jnp.any(temperature > 0), drawn, lambda: greedy)
    return jnp.where(temperature > 0, token, greedy)


def _penalised(logits: jax.Array, seen: Seen, sampling: Sampling) -> jax.Array:
    penalty = sampling.repetition_penalty
    harder = jnp.where(logits < 0, logits * penalty, logits / penalty)
    logits = jnp.where(seen.before | seen.drawn, harder, logits)
    return logits - sampling.presence_penalty * seen.drawn


def _filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits of what top_k, top_p and min_p drop are -inf."""
    if sampling.top_k:
        ones = jnp.ones_like(logits)
        logits = _from_threshold(logits, ones, jnp.float32(sampling.top_k))
    if sampling.top_p < 1:
        weights = jax.nn.softmax(logits, axis=-1)
        logits = _from_threshold(logits, weights, jnp.float32(sampling.top_p))
    if sampling.min_p:
        least = logits.max(-1, keepdims=True) + np.log(sampling.min_p)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _from_threshold(logits: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """Keeps the ids of the largest logit at which those from it up weigh `target`, and above; all,
    when all weigh less. [..., V] each."""
    order = _ordered(logits)

    def bit(i: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        weight = jnp.where(order >= tried[..., None], weights, 0).sum(-1)
        return jnp.where(weight >= target, tried, found)

    start = jnp.zeros(logits.shape[:-1], jnp.uint32)
    threshold = jax.lax.fori_loop(0, 32, bit, start)
    return jnp.where(order >= threshold[..., None], logits, -jnp.inf)


def _ordered(values: jax.Array) -> jax.Array:
    """uint32 in the order of these float32 values."""
    values = jnp.where(values == 0, 0.0, values)  # no -0.0
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits & _SIGN, ~bits, bits | _SIGN)


def _uniform(seeds: jax.Array, number: jax.Array) -> jax.Array:
    """float32 [..., 2] in [0, 1): f(seed, number)."""
    keys = jax.random.wrap_key_data(seeds.reshape(-1, 2), impl="threefry2x32")

    def two(key: jax.Array, t: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, t), (2,))

    return jax.vmap(two)(keys, number.reshape(-1)).reshape(*number.shape, 2)


def _inverse(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """The draw from the softmax of logits [..., V] that uniform [..., 2] decides: the first number
    the block, the second the id in it. int32 [...]."""
    size = logits.shape[-1]
    # A power of two that divides the vocabulary, so that devices which share it hold whole blocks.
    blocks = math.gcd(size, BLOCKS)
    if blocks < LEAST_BLOCKS:
        blocks = BLOCKS
        filling = [(0, 0)] * (logits.ndim - 1) + [(0, -size % blocks)]
        logits = jnp.pad(logits, filling, constant_values=-jnp.inf)
    parts = jnp.exp(logits - logits.max(-1, keepdims=True))
    parts = parts.reshape(*logits.shape[:-1], blocks, -1)
    block = _first_above(parts.sum(-1), uniform[..., 0])
    inside = jnp.take_along_axis(parts, block[..., None, None], axis=-2)[..., 0, :]
    return block * parts.shape[-1] + _first_above(inside, uniform[..., 1])


def _first_above(parts: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first i whose cumulative share of parts [..., n] exceeds uniform [...], never one of no
    weight."""
    sums = jnp.cumsum(parts, axis=-1)
    heavy = parts > 0
    above = (sums > (uniform * sums[..., -1])[..., None]) & heavy
    # Sums round: where nothing is above, the last one of any weight.
    last = parts.shape[-1] - 1 - jnp.argmax(heavy[..., ::-1], axis=-1)
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last)
