"""Cached decoding of many branches from shared prefixes: one compiled function, one host transfer.

A question's prompt, pictures and reference path are prefilled once. Every branch of the question
then decodes against that one key/value cache, of which branch r may see the first
`prompt_len + starts[r]` tokens, and a small cache of its own. With n prefixes and K branches each,
this is one prefill instead of n*K. The loop over new tokens runs on the device and stops as soon as
all branches have ended; the host sees tokens only then.

Randomness: token t of a branch is drawn with Gumbel noise of the key f(seed of the branch, t), so a
branch depends on its own seed and prefix, and not on which branches or questions share its batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from srpo_jax.console import compiling
from srpo_jax.distributed.lifecycle import wait_for_all
from srpo_jax.distributed.mesh import over_processes
from srpo_jax.distributed.sharding import fetch, put_same
from srpo_jax.errors import UserError
from srpo_jax.models.inputs import EncodedPrompt, causal_row, check_length, pad_rows
from srpo_jax.models.policy_model import head_matrix

# Rises when the same seed gives other branches.
SAMPLER_VERSION = 1


class TokenIds(Protocol):
    """What the sampler needs to know of a tokenizer; models.hf.processor.Processor has both."""

    eos_ids: tuple[int, ...]
    suppress_ids: tuple[int, ...]


@dataclass(frozen=True)
class SampleRequest:
    """One question and the branches wanted from it.

    prompt: the encoded question. path: int32 [m] tokens to prefill after it (may be empty).
    starts: per branch, how many tokens of the path it keeps. seeds: per branch, 0 <= seed < 2**64.
    name: what an error calls this question.
    """

    prompt: EncodedPrompt
    path: np.ndarray
    starts: tuple[int, ...]
    seeds: tuple[int, ...]
    name: str = "question"


@dataclass(frozen=True)
class Sample:
    """One branch. tokens: int32 [n], with the end token if finished. logp: sum of their natural
    log-probabilities at temperature 1 over the ids that may be sampled (float32 sums)."""

    tokens: np.ndarray
    logp: float
    finished: bool


class _Rows(NamedTuple):
    """The branches of a batch as arrays: [B, R] each, seeds uint32 [B, R, 2]."""

    shared_len: np.ndarray
    first_position: np.ndarray
    seeds: np.ndarray
    active: np.ndarray


class Sampler:
    """Samples branches in batches of fixed shape, so it compiles once.

    Args:
      model: a PolicyModel; params: its parameters, on any devices.
      ids: end and suppressed token ids (a Processor will do).
      batch: questions per call; branches: branches per question (R).
      prompt_tokens: room for prompt and path together; patches: room for a question's patches, a
        positive multiple of the vision tower's patch_unit. max_new_tokens: of a branch.
      temperature: of the softmax; 0 takes the likeliest token.
      mesh: questions are spread over its axes "data" and "fsdp" (their product must divide
        `batch`), key/value heads over "tensor". Of several processes all make the same calls, and
        all get the results. None: wherever the parameters are.
    """

    def __init__(
        self,
        model,
        params,
        ids: TokenIds,
        *,
        batch: int,
        branches: int,
        prompt_tokens: int,
        patches: int,
        max_new_tokens: int,
        temperature: float,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if min(batch, branches, prompt_tokens, max_new_tokens) < 1 or not temperature >= 0:
            raise ValueError("batch, branches and token budgets start at 1, temperature at 0")
        self.model, self.params = model, params
        self.batch, self.branches = batch, branches
        self.prompt_tokens, self.patches = prompt_tokens, patches
        self.max_new_tokens, self.temperature = max_new_tokens, float(temperature)
        self._eos = np.asarray(sorted(ids.eos_ids), np.int32)
        self._blocked = np.asarray(sorted(set(ids.suppress_ids) - set(ids.eos_ids)), np.int32)
        self._sharding, self._together = None, over_processes(mesh)
        if mesh is not None:
            self._sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
            spread = mesh.shape["data"] * mesh.shape["fsdp"]
            if batch % spread:
                raise ValueError(f"batch {batch} does not divide over {spread} devices")
        self._run: Any = None  # compiled with the first batch: all have its shape

    def __call__(self, requests: Sequence[SampleRequest]) -> list[list[Sample]]:
        """The branches of every request, in order.

        Any number of requests and branches: a request with more branches than a row has takes
        several rows, and `batch` rows are sampled at a time.
        Raises UserError naming the request that does not fit the budgets.
        """
        results: list[list[Sample]] = [[] for _ in requests]
        parts = [
            (i, dataclasses.replace(q, starts=q.starts[cut], seeds=q.seeds[cut]))
            for i, q in enumerate(requests)
            for first in range(0, len(q.starts), self.branches)
            for cut in [slice(first, first + self.branches)]
        ]
        for start in range(0, len(parts), self.batch):
            owners, chunk = zip(*parts[start : start + self.batch])
            inputs, rows = self._pack(chunk)
            if self._sharding is not None:
                inputs, rows = put_same((inputs, rows), self._sharding)
            if self._run is None:
                self._run = self._compiled(inputs, rows)
            tokens, length, logp, done = fetch(self._run(self.params, inputs, rows))
            for b, (i, request) in enumerate(zip(owners, chunk)):
                results[i] += [
                    Sample(tokens[b, r, : length[b, r]], float(logp[b, r]), bool(done[b, r]))
                    for r in range(len(request.starts))
                ]
        return results

    def _compiled(self, inputs: dict, rows: _Rows) -> Any:
        with compiling("sampling", quiet=self._together and jax.process_index() > 0):
            compiled = jax.jit(self._sample).lower(self.params, inputs, rows).compile()
        if self._together:
            wait_for_all()
        return compiled

    def _pack(self, requests: Sequence[SampleRequest]) -> tuple[dict, _Rows]:
        """Model inputs and branch arrays; missing questions repeat the first one, inactive."""
        shape = (self.batch, self.branches)
        rows = _Rows(
            np.ones(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros((*shape, 2), np.uint32),
            np.zeros(shape, bool),
        )
        for b, request in enumerate(requests):
            self._check(request)
            n = len(request.starts)
            starts = np.asarray(request.starts, np.int32)
            rows.shared_len[b, :n] = len(request.prompt.tokens) + starts
            rows.first_position[b, :n] = request.prompt.next_position + starts
            rows.seeds[b, :n] = [(seed >> 32, seed & 0xFFFFFFFF) for seed in request.seeds]
            rows.active[b, :n] = True
        inputs = [causal_row(r.prompt, np.asarray(r.path, np.int32)) for r in requests]
        inputs += [inputs[0]] * (self.batch - len(requests))
        return pad_rows(inputs, tokens=self.prompt_tokens, patches=self.patches), rows

    def _check(self, request: SampleRequest) -> None:
        used = len(request.prompt.tokens) + len(request.path)
        if used > self.prompt_tokens:
            raise UserError(
                f"{request.name}: its prompt and path are {used} tokens and the sampler has room "
                f"for {self.prompt_tokens}; shorten it or give the sampler more room"
            )
        if len(request.prompt.patches) > self.patches:
            raise UserError(
                f"{request.name}: its pictures have {len(request.prompt.patches)} patches and the "
                f"sampler has room for {self.patches}; use smaller pictures or give it more room"
            )
        last = request.prompt.next_position + len(request.path) + self.max_new_tokens
        try:
            check_length(last, self.model.config)
        except UserError as error:
            raise UserError(f"{request.name}: {error}") from None
        if len(request.starts) != len(request.seeds):
            raise ValueError(f"{request.name}: one seed per start")
        if not all(0 <= start <= len(request.path) for start in request.starts):
            raise ValueError(f"{request.name}: a branch starts outside its path")

    def _sample(self, params, inputs: dict, rows: _Rows):
        """Returns tokens int32 [B,R,M], length int32 [B,R], logp float32 [B,R], finished [B,R]."""
        model, room = self.model, self.max_new_tokens
        variables = {"params": params}
        head = head_matrix(params, model.config)
        hidden, shared = model.apply(variables, inputs, method="prefill")
        hidden = jnp.take_along_axis(hidden, (rows.shared_len - 1)[..., None], axis=1)  # [B,R,D]

        layers, batch, _, kv_heads, head_dim = shared[0].shape
        # The last token is never fed back, so its key and value need no room.
        own_shape = (layers, batch, self.branches, max(room - 1, 1), kv_heads, head_dim)
        own = tuple(jnp.zeros(own_shape, part.dtype) for part in shared)
        if self._sharding is not None:
            mesh = self._sharding.mesh
            heads = None if kv_heads % mesh.shape["tensor"] else "tensor"
            spec = PartitionSpec(None, *self._sharding.spec, None, None, heads)
            split = NamedSharding(mesh, spec)
            own = jax.lax.with_sharding_constraint(own, (split, split))
        keys = jax.random.wrap_key_data(jnp.asarray(rows.seeds), impl="threefry2x32")
        zeros = jnp.zeros(rows.active.shape, jnp.int32)

        def take(t, hidden, tokens, length, logp, done):
            """Draws token t of every branch that has not ended."""
            token, token_logp = self._draw(hidden, head, keys, t)
            tokens = tokens.at[:, :, t].set(jnp.where(done, 0, token))
            length = length + ~done
            logp = logp + jnp.where(done, 0.0, token_logp)
            return token, tokens, length, logp, done | jnp.isin(token, self._eos)

        tokens = jnp.zeros((*rows.active.shape, room), jnp.int32)
        first = take(0, hidden, tokens, zeros, zeros.astype(jnp.float32), ~rows.active)

        def unfinished(state):
            t, (*_, done), _ = state
            return (t < room) & ~jnp.all(done)

        def body(state):
            t, (token, tokens, length, logp, done), own = state
            position = rows.first_position + t - 1
            position = jnp.broadcast_to(position[:, None], (batch, 3, self.branches))
            with jax.named_scope("decode"):
                hidden, own = model.apply(
                    variables, token, position, shared, rows.shared_len, own, t - 1, method="decode"
                )
            return t + 1, take(t, hidden, tokens, length, logp, done), own

        _, (_, tokens, length, logp, done), _ = jax.lax.while_loop(
            unfinished, body, (jnp.int32(1), first, own)
        )
        return tokens, length, logp, done & rows.active

    def _draw(self, hidden, head, keys, t):
        """hidden [B,R,D] -> sampled ids int32 [B,R] and their log-probability float32 [B,R]."""
        with jax.named_scope("draw"):
            logits = jnp.einsum(
                "brd,dv->brv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
            )
            ids = jnp.arange(logits.shape[-1])
            blocked = jnp.isin(ids, self._blocked) | (ids >= self.model.config.text.vocab_size)
            logits = jnp.where(blocked, -jnp.inf, logits)
            if self.temperature == 0:
                token = jnp.argmax(logits, axis=-1)
            else:
                # argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T).
                noise = jax.vmap(jax.vmap(lambda key: _noise(key, t, logits.shape[-1])))(keys)
                token = jnp.argmax(logits / self.temperature + noise, axis=-1)
            chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
            return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def _noise(key, t, size: int):
    return jax.random.gumbel(jax.random.fold_in(key, t), (size,), jnp.float32)
