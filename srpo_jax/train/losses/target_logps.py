"""Log-probs of the target tokens from hidden states, with all logits never in memory at once.

The vocabulary is the largest axis of a step: float32 logits of 4096 targets over a vocabulary of
150k are 2.5 GB. The forward pass goes by chunks of targets, the backward pass by parts of the
vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


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
