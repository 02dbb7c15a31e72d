"""How sure a policy is of a given path: log-probabilities of its tokens, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.console import compiling
from srpo_jax.distributed.lifecycle import wait_for_all
from srpo_jax.distributed.sharding import fetch
from srpo_jax.inference.policy import Policy
from srpo_jax.inference.token_logps import token_logps
from srpo_jax.models.inputs import EncodedPrompt, causal_row, pad_rows

FIRST_TOKENS = 8  # of a step: where it is decided what the step will say


class PathScorer:
    """Log-probabilities at temperature 1 of the first tokens of every step of a path.

    tokens: room for prompt and path; patches: for a question's patches; steps: most steps of a
    path. Shapes are fixed, so it compiles once.
    """

    def __init__(self, policy: Policy, *, tokens: int, patches: int, steps: int):
        self._policy = policy
        self._tokens, self._patches, self._steps = tokens, patches, steps
        self._run: Any = None  # compiled with the first path: all have its shape

    def __call__(self, prompt: EncodedPrompt, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n]: for each of the n steps the mean log-probability of its first tokens (at
        most FIRST_TOKENS), given all before it. pieces: the path, n steps and the reply; the reply
        is not scored.
        """
        steps = list(pieces[:-1])
        path = np.concatenate(steps)
        row = pad_rows([causal_row(prompt, path)], tokens=self._tokens, patches=self._patches)
        where = np.zeros((self._steps, FIRST_TOKENS), np.int32)
        used = np.zeros((self._steps, FIRST_TOKENS), bool)
        start = len(prompt.tokens)
        for i, step in enumerate(steps):
            count = min(FIRST_TOKENS, len(step))
            where[i, :count] = start + np.arange(count)
            used[i, :count] = True
            start += len(step)
        if self._run is None:
            shared = self._policy.together
            with compiling("scoring paths", quiet=shared and jax.process_index() > 0):
                lowered = jax.jit(self._score).lower(self._policy.params, row, where, used)
                self._run = lowered.compile()
            if shared:
                wait_for_all()
        found = fetch(self._run(self._policy.params, row, where, used))
        return found[: len(steps)]

    def _score(self, params: Any, inputs: dict, where: jax.Array, used: jax.Array) -> jax.Array:
        model = self._policy.model
        hidden = model.apply({"params": params}, inputs)[0]  # [T, D]
        before = hidden[jnp.maximum(where - 1, 0)]  # what predicts each of these tokens
        found = token_logps(params, model, before, inputs["tokens"][0][where])
        logps = jnp.where(used, found, 0.0)
        return logps.sum(-1) / jnp.maximum(used.sum(-1), 1)


def chosen_points(scores: np.ndarray, count: int, first: int = 3) -> list[int]:
    """The branch points that are kept, in order: at most `count` (0: all) of those before each
    step, the `first` ones and of the others those whose step the policy is least sure of.

    scores: float [n], of PathScorer. Safety is decided early as a rule (SafeThink, arXiv
    2602.11096, intervenes in the first one to three steps), and branches pay at uncertain steps
    (TreeRL, EDU-PRM).
    """
    points = list(range(len(scores)))
    if not count or len(points) <= count:
        return points
    head = points[: min(first, count)]
    rest = sorted(points[len(head) :], key=lambda i: (scores[i], i))
    return sorted(head + rest[: count - len(head)])
