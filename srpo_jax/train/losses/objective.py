"""SRPO and its baselines: the loss over per-token log-probs of packed reasoning trees.

    L = ref_coef * L_ref + lambda_exp * L_exp

L_ref is the negative log-prob per token of the reference path (SFT); L_exp contrasts a safe with
an unsafe branch of the same branch point. Which sequences and pairs there are, and their weights,
is decided on the host (srpo_jax/pack); here is arithmetic only. Written from the public record:
SRPO's abstract (arXiv 2509.12060) names generative exploration and contrastive optimisation; the
formulas are those of RPO (arXiv 2410.10858, eqs. 6-10) and of RPO's code.

Names, defaults and sources (class Objective):

lambda_exp  0.3          RPO table 5. 0 is plain SFT on the reference path.
contrast    odds_ratio   RPO eqs. 7-9, ORPO arXiv 2403.07691 eqs. 4-7
            dpo          DPO arXiv 2305.18290 eq. 7, with a frozen reference policy
            simpo        SimPO arXiv 2405.14734 eq. 6
            ipo          IPO arXiv 2310.12036 eq. 17, with a frozen reference policy
normalise   mean         what stands for a sequence in L_exp: the mean of its tokens' log-probs (the
                         codes of RPO and ORPO; SimPO eq. 4; TRL for IPO), or
            sum          their sum (RPO eq. 8 and DPO eq. 7 as printed). Published DPO is
                         contrast=dpo with normalise=sum. L_ref is a token mean in any case: RPO
                         eq. 6 prints a sum, its code takes the mean.
beta        0.1          DPO, SimPO and IPO: the strength of the contrast (TRL's default for DPO and
                         IPO; SimPO uses 2.0 to 10)
gamma       0.5          SimPO's target margin (TRL's default for its `simpo_gamma`)
ref_coef    1.0          weight of L_ref. 0 with contrast=dpo is plain DPO.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

CONTRASTS = ("odds_ratio", "dpo", "simpo", "ipo")
NORMALISE = ("mean", "sum")

# Log-probs are clipped to this before odds are taken. 1 - exp(x) has no float32 digits left much
# closer to 0: at -1e-7 log1mexp is -16.1 and its gradient -1e7, both finite; above, the value
# stays and the gradient is 0. A model that certain of every token has nothing to learn there.
MAX_LOG_PROB = -1e-7

# Metrics that srpo_loss returns as sums weighted by pair_weight: divide them by "pair_weight".
PAIR_METRICS = (
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The switches of the loss; see the module's docstring. Hashable (a static argument)."""

    lambda_exp: float = 0.3
    contrast: str = "odds_ratio"
    normalise: str = "mean"
    beta: float = 0.1
    gamma: float = 0.5
    ref_coef: float = 1.0

    def __post_init__(self):
        if self.contrast not in CONTRASTS:
            raise ValueError(f"contrast {self.contrast!r} is not one of {CONTRASTS}")
        if self.normalise not in NORMALISE:
            raise ValueError(f"normalise {self.normalise!r} is not one of {NORMALISE}")


def needs_reference_policy(objective: Objective) -> bool:
    """Whether the loss needs log-probs of a frozen reference policy (DPO and IPO)."""
    return objective.contrast in ("dpo", "ipo") and objective.lambda_exp != 0


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0, float32, x clipped to MAX_LOG_PROB.

    Two branches meeting at -log 2 (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
    Each sees only arguments that are its own, so that neither gives the other's gradient a nan.
    """
    x = jnp.minimum(jnp.asarray(x, jnp.float32), MAX_LOG_PROB)
    near = x > -jnp.log(2.0)
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -0.1))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def log_odds(mean_logp: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of p = exp(mean_logp), float32, mean_logp clipped to MAX_LOG_PROB.

    Finite, with finite gradients, from -1e4 (and below) to 0 inclusive. RPO eq. 8.
    """
    x = jnp.minimum(jnp.asarray(mean_logp, jnp.float32), MAX_LOG_PROB)
    return x - log1mexp(x)


def sequence_score(objective: Objective, logp: jax.Array, length: jax.Array) -> jax.Array:
    """The sum of log-probs, or their mean, as `normalise` says."""
    return logp / length if objective.normalise == "mean" else logp


def pair_terms(
    objective: Objective,
    chosen: jax.Array,
    rejected: jax.Array,
    chosen_len: jax.Array,
    rejected_len: jax.Array,
    ref_chosen: jax.Array | None = None,
    ref_rejected: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(loss, margin) of every pair; all arrays float32 of one shape.

    chosen, rejected: SUMS of log-probs; *_len: numbers of tokens; ref_*: sums under the reference
    policy (DPO, IPO). With s() the mean or sum, c and r the two sides:

    odds_ratio  margin = log_odds(s(c)) - log_odds(s(r))
    dpo         margin = beta * ((s(c) - s_ref(c)) - (s(r) - s_ref(r)))
    simpo       margin = beta * (s(c) - s(r)) - gamma
    ipo         margin = (s(c) - s_ref(c)) - (s(r) - s_ref(r)), loss = (margin - 1/(2 beta))^2
    and loss = -log_sigmoid(margin) for the first three.
    """
    c = sequence_score(objective, chosen, chosen_len)
    r = sequence_score(objective, rejected, rejected_len)
    if objective.contrast == "odds_ratio":
        margin = log_odds(c) - log_odds(r)
    elif objective.contrast == "simpo":
        margin = objective.beta * (c - r) - objective.gamma
    else:
        if ref_chosen is None or ref_rejected is None:
            raise ValueError(
                f"contrast {objective.contrast!r} needs the reference policy's log-probs"
            )
        margin = (c - sequence_score(objective, ref_chosen, chosen_len)) - (
            r - sequence_score(objective, ref_rejected, rejected_len)
        )
        if objective.contrast == "ipo":
            return jnp.square(margin - 1 / (2 * objective.beta)), margin
        margin = objective.beta * margin
    return -jax.nn.log_sigmoid(margin), margin


def sequence_logps(token_logp: jax.Array, batch: dict) -> jax.Array:
    """[B, N] log-probs of targets -> [B, Q] sums over sequences, float32."""
    segments = batch["seq_segments"].shape[-1]
    # Padding targets carry segment S: summed into one segment more, which is cut off.
    sums = jax.vmap(lambda x, s: jax.ops.segment_sum(x, s, segments + 1))(
        token_logp.astype(jnp.float32), batch["target_segment"]
    )[:, :segments]
    # HIGHEST: a TPU would round the summands to bfloat16 otherwise.
    return jnp.einsum(
        "bqs,bs->bq", batch["seq_segments"], sums, precision=jax.lax.Precision.HIGHEST
    )


@jax.named_scope("loss")
def srpo_loss(
    token_logp: jax.Array,
    batch: dict,
    objective: Objective,
    reference_token_logp: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics): float32 scalars, all of them SUMS over the rows of this batch.

    token_logp float32 [B, N]: log p of every target (target_logps); reference_token_logp: the same
    under the frozen reference policy. `batch`: see srpo_jax/pack/rows.py; its weights are already
    divided by the size of the global batch, so that adding losses, gradients and metrics over row
    slices or devices gives those of the global batch.

    metrics, with TRL's names:
      loss, loss_ref, loss_exp   L, L_ref, L_exp: the added sums are the values
      logps/chosen, /rejected    mean (normalise=sum: summed) log-prob of a side of a pair
      rewards/chosen, /rejected  beta * logps (TRL's ORPO and SimPO), with a reference policy
                                 beta * (logps - reference logps) (TRL's DPO). beta is never
                                 lambda_exp (TRL's ORPO calls that beta), so SFT has them too
      rewards/margins            their difference
      rewards/accuracies         share of pairs with rewards chosen > rejected
      pair_weight, ref_weight    the sums of the weights
    Those in PAIR_METRICS are sums weighted by pair_weight: divide the added sums by the added
    "pair_weight" (finish_metrics does).
    """
    f32 = jnp.float32
    seq = sequence_logps(token_logp, batch)
    seq_len = batch["seq_len"].astype(f32)
    loss_ref = -jnp.sum(batch["ref_weight"] * seq / seq_len)

    def side(values, which):
        return jnp.take_along_axis(values, batch[which], axis=1)

    chosen, rejected = side(seq, "pair_chosen"), side(seq, "pair_rejected")
    chosen_len, rejected_len = side(seq_len, "pair_chosen"), side(seq_len, "pair_rejected")
    ref_chosen = ref_rejected = None
    if reference_token_logp is not None:
        ref_seq = jax.lax.stop_gradient(sequence_logps(reference_token_logp, batch))
        ref_chosen, ref_rejected = side(ref_seq, "pair_chosen"), side(ref_seq, "pair_rejected")
    weight = batch["pair_weight"].astype(f32)
    loss_exp = jnp.zeros((), f32)
    if objective.lambda_exp != 0:
        terms, _ = pair_terms(
            objective, chosen, rejected, chosen_len, rejected_len, ref_chosen, ref_rejected
        )
        loss_exp = jnp.sum(weight * terms)
    loss = objective.ref_coef * loss_ref + objective.lambda_exp * loss_exp

    score_c = sequence_score(objective, chosen, chosen_len)
    score_r = sequence_score(objective, rejected, rejected_len)
    reward_c, reward_r = objective.beta * score_c, objective.beta * score_r
    if ref_chosen is not None:
        reward_c -= objective.beta * sequence_score(objective, ref_chosen, chosen_len)
        reward_r -= objective.beta * sequence_score(objective, ref_rejected, rejected_len)
    values = (score_c, score_r, reward_c, reward_r, reward_c - reward_r, reward_c > reward_r)
    metrics = {
        "loss": loss,
        "loss_ref": loss_ref,
        "loss_exp": loss_exp,
        "pair_weight": jnp.sum(weight),
        "ref_weight": jnp.sum(batch["ref_weight"]),
    }
    metrics |= {name: jnp.sum(weight * value) for name, value in zip(PAIR_METRICS, values)}
    return loss, jax.lax.stop_gradient(metrics)


def finish_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Added sums of srpo_loss's metrics -> values: PAIR_METRICS divided by the pair weight.

    A batch without pairs gives 0 for them. The two weights are left out.
    """
    weight = sums["pair_weight"]
    scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
    return {
        name: value * scale if name in PAIR_METRICS else value
        for name, value in sums.items()
        if name not in ("pair_weight", "ref_weight")
    }


def target_logps(
    hidden: jax.Array,
    head: jax.Array,
    batch: dict,
    *,
    chunk: int = 512,
    valid_vocab: int | None = None,
    vocab_axis: str | None = None,
) -> jax.Array:
    """float32 [B, N]: log p(target | its path), from the hidden state of the target's parent.

    hidden [B, T, D] after the final norm; head [D, V] (cast to hidden's dtype; logits and all sums
    are float32). valid_vocab: logits from this index on are padding of the vocabulary and have
    probability 0. Only targets are projected, `chunk` of each row at a time, and again in the
    backward pass, there all targets on a part of the vocabulary: at most [B, chunk, V] float32
    logits exist, and as many for their gradient.
    vocab_axis: inside shard_map, the mesh axis over which V is split; `head` is then this device's
    part of it, and two numbers per target are exchanged instead of logits.
    """
    labels = jnp.take_along_axis(batch["tokens"], batch["target_pos"], axis=1)
    states = jnp.take_along_axis(hidden, batch["target_parent"][..., None], axis=1)
    how = _Vocabulary(min(chunk, labels.shape[1]), valid_vocab, vocab_axis)
    with jax.named_scope("target_logps"):
        return _logps(how, head.astype(hidden.dtype), states, labels)


class _Vocabulary(NamedTuple):
    """The static arguments of target_logps."""

    chunk: int
    valid: int | None
    axis: str | None

    def logits(self, states, head, start=0):
        """(float32 logits [..., columns of head], their ids); head: from its column `start` on."""
        size = head.shape[1]
        ids = start + jnp.arange(size)
        logits = jnp.einsum("bnd,dv->bnv", states, head, preferred_element_type=jnp.float32)
        if self.valid is not None:
            logits = jnp.where(ids < self.valid, logits, -jnp.inf)
        return logits, ids

    def first(self, head):
        """The id of the first column of this device's head."""
        return 0 if self.axis is None else jax.lax.axis_index(self.axis) * head.shape[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logps(how, head, states, labels):
    """head [D, V], states [B, N, D], labels [B, N] -> float32 [B, N]."""
    return _logps_forward(how, head, states, labels)[0]


def _logps_forward(how, head, states, labels):
    b, n = labels.shape
    chunks = -(-n // how.chunk)

    def split(x):  # [B, N, ...] -> [chunks, B, chunk, ...]
        x = jnp.pad(x, ((0, 0), (0, chunks * how.chunk - n), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, chunks, how.chunk, *x.shape[2:]), 1, 0)

    def one_chunk(xs):
        states, labels = xs
        logits, ids = how.logits(states, head, how.first(head))
        # A masked sum, not a gather: with V sharded it stays local to the shard.
        label = jnp.sum(jnp.where(ids == labels[..., None], logits, 0), axis=-1)
        if how.axis is None:
            return label, jax.nn.logsumexp(logits, axis=-1)
        largest = jax.lax.pmax(jnp.max(logits, axis=-1), how.axis)
        total = jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
        label, total = jax.lax.psum((label, total), how.axis)
        return label, largest + jnp.log(total)

    label, lse = (
        jnp.moveaxis(x, 0, 1).reshape(b, chunks * how.chunk)[:, :n]
        for x in jax.lax.map(one_chunk, (split(states), split(labels)))
    )
    return label - lse, (head, states, labels, lse)


def _logps_backward(how, kept, grad):
    """By parts of the vocabulary: each column of the head's gradient is one product over all
    targets, summed in float32 and written once. A loop over chunks of targets would have to keep
    its sum [D, V] in float32 (1.0 GiB more at the peak for a 7B) or round it at every chunk."""
    head, states, labels, lse = kept
    width = head.shape[1]
    part = -(-width * how.chunk // labels.shape[1])

    def step(i, sums):
        for_head, for_states = sums
        start = jnp.minimum(i * part, width - part)  # the last part overlaps the one before
        own = jax.lax.dynamic_slice_in_dim(head, start, part, axis=1)
        logits, ids = how.logits(states, own, how.first(head) + start)
        slope = (ids == labels[..., None]) - jnp.exp(logits - lse[..., None])
        slope = (slope * grad[..., None]).astype(states.dtype)
        columns = jnp.einsum("bnd,bnv->dv", states, slope, preferred_element_type=jnp.float32)
        for_head = jax.lax.dynamic_update_slice_in_dim(
            for_head, columns.astype(head.dtype), start, axis=1
        )
        fresh = start + jnp.arange(part) >= i * part
        for_states += jnp.einsum(
            "bnv,dv->bnd", jnp.where(fresh, slope, 0), own, preferred_element_type=jnp.float32
        )
        return for_head, for_states

    for_states = jnp.zeros_like(states, jnp.float32)
    if how.axis is not None:  # until they are added up, each device has its own
        for_states = jax.lax.pcast(for_states, (how.axis,), to="varying")
    sums = (jnp.zeros_like(head), for_states)
    for_head, for_states = jax.lax.fori_loop(0, -(-width // part), step, sums)
    if how.axis is not None:
        for_states = jax.lax.psum(for_states, how.axis)
    return for_head, for_states.astype(states.dtype), None


_logps.defvjp(_logps_forward, _logps_backward)
