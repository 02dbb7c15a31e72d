"""Log-probabilities of given tokens, from the hidden states that predict them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from srpo_jax.models.policy_model import PolicyModel, head_matrix


def token_logps(params: Any, model: PolicyModel, before: jax.Array, tokens: jax.Array) -> jax.Array:
    """float32 [...]: the natural logarithm of each token's probability at temperature 1, over the
    whole vocabulary. before [..., D]: the hidden states of the tokens in front; tokens int [...].
    """
    head = head_matrix(params, model.config).astype(before.dtype)
    logits = jnp.einsum("...d,dv->...v", before, head, preferred_element_type=jnp.float32)
    ids = jnp.arange(logits.shape[-1])
    logits = jnp.where(ids < model.config.text.vocab_size, logits, -jnp.inf)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
