"""SRPO and its baselines: the loss over per-token log-probs of packed reasoning trees.

    L = ref_coef * L_ref + lambda_exp * L_exp

L_ref is the negative log-prob per token of the reference path (SFT); L_exp contrasts a safe with
an unsafe branch of the same branch point. Which sequences and pairs there are, and their weights,
is decided on the host (srpo_jax/pack); here is arithmetic only. Written from the public record:
SRPO's abstract (arXiv 2509.12060) names generative exploration and contrastive optimisation; the
formulas are those of RPO (arXiv 2410.10858, eqs. 6-10) and of RPO's code.

Names, defaults and sources (class Objective):

lambda_exp  0.3          RPO table 5. 0 is plain SFT on the reference path.
contrast    odds_ratio   the loss of a pair: a name of pairwise.py, where formulas and sources are
                         (odds_ratio: RPO eqs. 7-9), or `module:Class` for a loss of your own
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

import jax
import jax.numpy as jnp

from srpo_jax.errors import UserError
from srpo_jax.train.losses.pairwise import PairLoss, Pairs, find_loss

NORMALISE = ("mean", "sum")

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
    """The switches of the loss; see the module's docstring. Hashable (a static argument).

    loss: what `contrast` names, looked up once.

    Errors: UserError for a contrast that does not exist, ValueError for a wrong normalise.
    """

    lambda_exp: float = 0.3
    contrast: str = "odds_ratio"
    normalise: str = "mean"
    beta: float = 0.1
    gamma: float = 0.5
    ref_coef: float = 1.0
    loss: PairLoss = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "loss", find_loss(self.contrast))
        if self.normalise not in NORMALISE:
            raise ValueError(f"normalise {self.normalise!r} is not one of {NORMALISE}")


def needs_reference_policy(objective: Objective) -> bool:
    """Whether the loss needs log-probs of a frozen reference policy (DPO and IPO do)."""
    return objective.loss.needs_reference and objective.lambda_exp != 0


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


def pair_scores(seq: jax.Array, seq_len: jax.Array, batch: dict, objective: Objective) -> Pairs:
    """[B, Q] sums and lengths of sequences -> the scores [B, P] of both sides of every pair."""

    def score(which):
        total = jnp.take_along_axis(seq, batch[which], axis=1)
        if objective.normalise == "sum":
            return total
        return total / jnp.take_along_axis(seq_len, batch[which], axis=1)

    return Pairs(score("pair_chosen"), score("pair_rejected"))


def pair_losses(pairs: Pairs, objective: Objective) -> jax.Array:
    """The loss [B, P] of every pair, by the objective's contrast.

    Errors: ValueError when that needs the reference policy's scores and pairs has none; UserError
    for a loss from outside that gives anything but one number for each pair.
    """
    if objective.loss.needs_reference and pairs.reference_chosen is None:
        raise ValueError(f"contrast {objective.contrast!r} needs the reference policy's log-probs")
    losses = objective.loss.fn(pairs, objective.beta, objective.gamma)
    if jnp.shape(losses) != pairs.chosen.shape:
        raise UserError(
            f"objective.contrast={objective.contrast!r} gives losses of shape {jnp.shape(losses)} "
            f"for pairs of shape {pairs.chosen.shape}; it must give one number for each pair"
        )
    return losses


@jax.named_scope("loss")
def srpo_loss(
    token_logp: jax.Array,
    batch: dict,
    objective: Objective,
    reference_token_logp: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics): float32 scalars, all of them SUMS over the rows of this batch.

    token_logp float32 [B, N]: log p of every target (target_logps); reference_token_logp: the same
    under the frozen reference policy. `batch`: see pack/packing.py; its weights are already
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

    weight = batch["pair_weight"].astype(f32)
    pairs = pair_scores(seq, seq_len, batch, objective)
    if reference_token_logp is not None:
        ref_seq = jax.lax.stop_gradient(sequence_logps(reference_token_logp, batch))
        ref_chosen, ref_rejected = pair_scores(ref_seq, seq_len, batch, objective)[:2]
        pairs = pairs._replace(reference_chosen=ref_chosen, reference_rejected=ref_rejected)
    loss_exp = jnp.zeros((), f32)
    if objective.lambda_exp != 0:
        loss_exp = jnp.sum(weight * pair_losses(pairs, objective))
    loss = objective.ref_coef * loss_ref + objective.lambda_exp * loss_exp

    reward_c, reward_r = objective.beta * pairs.chosen, objective.beta * pairs.rejected
    if pairs.reference_chosen is not None and pairs.reference_rejected is not None:
        reward_c -= objective.beta * pairs.reference_chosen
        reward_r -= objective.beta * pairs.reference_rejected
    values = (*pairs[:2], reward_c, reward_r, reward_c - reward_r, reward_c > reward_r)
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
