"""How a policy takes answers that are given to it: token by token, in one forward pass each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.console import compiling
from srpo_jax.distributed.sharding import fetch
from srpo_jax.inference.engine.drawing import allowed_ids
from srpo_jax.inference.policy import Policy
from srpo_jax.models.inputs import EncodedPrompt, causal_row, pad_rows
from srpo_jax.models.policy_model import head_matrix


class Taken(NamedTuple):
    """Sums over the tokens of answers: how many there are, their negative log-probability (natural,
    at temperature 1, over the ids that may be sampled), and how many of them are the likeliest."""

    tokens: int = 0
    nll: float = 0.0
    likeliest: int = 0

    def add(self, other: Taken) -> Taken:
        tokens, likeliest = self.tokens + other.tokens, self.likeliest + other.likeliest
        return Taken(tokens, self.nll + other.nll, likeliest)

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll / max(self.tokens, 1)))

    @property
    def agreement(self) -> float:
        return self.likeliest / max(self.tokens, 1)


class ForcedAnswers:
    """Called with weights, prompts and the answers to them. policy: its model, ids and mesh count,
    not its weights. tokens: room for prompt and answer; patches: for a question's pictures; answer:
    most tokens of an answer. Shapes are fixed, so it compiles once.
    """

    def __init__(self, policy: Policy, *, tokens: int, patches: int, answer: int):
        self._policy, self._room = policy, {"tokens": tokens, "patches": patches}
        self._answer = answer
        never = set(policy.processor.suppress_ids) - set(policy.processor.eos_ids)
        self._blocked = np.asarray(sorted(never), np.int32)
        self._run: Any = None

    def __call__(
        self, params: Any, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[int]]
    ) -> Taken:
        """Over all of them."""
        total = Taken()
        for prompt, answer in zip(prompts, answers, strict=True):
            row = pad_rows([causal_row(prompt, answer)], **self._room)
            where = np.zeros(self._answer, np.int32)
            where[: len(answer)] = len(prompt.tokens) + np.arange(len(answer))
            used = np.arange(self._answer) < len(answer)
            if self._run is None:
                with compiling("looking at answers", quiet=jax.process_index() > 0):
                    lowered = jax.jit(self._score).lower(params, row, where, used)
                    self._run = lowered.compile()
            tokens, nll, likeliest = fetch(self._run(params, row, where, used))
            total = total.add(Taken(int(tokens), float(nll), int(likeliest)))
        return total

    def _score(self, params: Any, inputs: dict, where: jax.Array, used: jax.Array) -> Any:
        model = self._policy.model
        hidden: Any = model.apply({"params": params}, inputs)
        before = hidden[0][jnp.maximum(where - 1, 0)]  # what predicts each of these tokens
        head = head_matrix(params, model.config).astype(before.dtype)
        logits = jnp.einsum("md,dv->mv", before, head, preferred_element_type=jnp.float32)
        allowed = allowed_ids(model.config.text.vocab_size, logits.shape[-1], self._blocked)
        logps = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
        tokens = inputs["tokens"][0][where]
        chosen = jnp.take_along_axis(logps, tokens[:, None], axis=-1)[:, 0]
        same = jnp.argmax(logps, axis=-1) == tokens
        return used.sum(), -jnp.where(used, chosen, 0.0).sum(), (used & same).sum()
