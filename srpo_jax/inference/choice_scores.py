"""How likely a model is to go on with each of a few given texts: exact log-probabilities.

The continuations of a prompt stand beside each other in one row, as branches that all see the
prompt and none of the others (subtree_end, see pack/tree_layout.py), so that the prompt and its
pictures are computed once however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from srpo_jax.console import compiling
from srpo_jax.inference.token_logps import token_logps
from srpo_jax.models.inputs import EncodedPrompt, Inputs, causal_row, check_length, pad_rows
from srpo_jax.models.policy_model import PolicyModel


class Choices(NamedTuple):
    """A prompt, what is answered to it already (`given`, int32 [m]), and the texts that may follow
    (int32 [n] each, at least one token).
    """

    prompt: EncodedPrompt
    given: np.ndarray
    texts: tuple[np.ndarray, ...]


class ChoiceScorer:
    """Log-probabilities at temperature 1, natural logarithm, over the whole vocabulary.

    batch: questions at once; with a mesh it must divide over its axes data and fsdp. Rows are
    padded to few sizes, so that it compiles a few times and not for every question.
    """

    def __init__(self, model: PolicyModel, params: Any, *, batch: int, mesh: Mesh | None = None):
        self._model, self._params, self._batch = model, params, batch
        self._sharding = None
        if mesh is not None:
            self._sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        self._run = jax.jit(self._score)
        self._shapes: set[Any] = set()  # those that were compiled

    def __call__(self, questions: Sequence[Choices]) -> list[np.ndarray]:
        """For each question float32 [number of texts]: the sum of the log-probabilities of a text's
        tokens, given prompt, `given` and the tokens before. Errors: UserError for a row that is
        longer than the model's positions.
        """
        found: list[np.ndarray] = []
        for start in range(0, len(questions), self._batch):
            found += self._scores(questions[start : start + self._batch])
        return found

    def _scores(self, questions: Sequence[Choices]) -> list[np.ndarray]:
        rows = [self._row(question) for question in questions]
        rows += rows[:1] * (self._batch - len(rows))
        unit = self._model.config.vision.patch_unit
        inputs = pad_rows(
            [row for row, _ in rows],
            tokens=room(max(len(row["tokens"]) for row, _ in rows), 64),
            patches=room(max(len(row["patches"]) for row, _ in rows), unit),
        )
        most = room(max(len(places) for _, places in rows), 2)
        longest = room(max(len(own) for _, places in rows for own in places), 2)
        where = np.zeros((self._batch, most, longest, 2), np.int32)
        used = np.zeros((self._batch, most, longest), bool)
        for b, (_, places) in enumerate(rows):
            for c, own in enumerate(places):
                where[b, c, : len(own)] = own
                used[b, c, : len(own)] = True
        arguments = inputs, where, used
        if self._sharding is not None:
            arguments = jax.device_put(arguments, self._sharding)
        shapes = tuple(x.shape for x in jax.tree.leaves(arguments))
        with nullcontext() if shapes in self._shapes else compiling("reading choices"):
            scores = self._run(self._params, *arguments)
        self._shapes.add(shapes)
        scores = jax.device_get(scores)
        return [scores[b, : len(q.texts)] for b, q in enumerate(questions)]

    def _row(self, question: Choices) -> tuple[Inputs, list[np.ndarray]]:
        """(model inputs, for each text int32 [n, 2]: where its tokens and those before stand)."""
        prompt, given = question.prompt, np.asarray(question.given, np.int32)
        start = len(prompt.tokens) + len(given)
        row = causal_row(prompt, np.concatenate([given, *question.texts]))
        first = prompt.next_position + len(given)
        check_length(first + max(map(len, question.texts)), self._model.config)
        places = []
        for text in question.texts:
            end = start + len(text)
            row["positions"][:, start:end] = first + np.arange(len(text))
            row["subtree_end"][start:end] = end
            own = np.arange(start, end)
            before = np.where(own == start, len(prompt.tokens) + len(given) - 1, own - 1)
            places.append(np.stack([own, before], axis=1))
            start = end
        return row, places

    def _score(self, params: Any, inputs: dict, where: jax.Array, used: jax.Array) -> jax.Array:
        hidden: Any = self._model.apply({"params": params}, inputs)  # [B, T, D]
        rows = jnp.arange(where.shape[0])[:, None, None]
        before = hidden[rows, where[..., 1]]  # [B, C, M, D]: what predicts each token
        tokens = inputs["tokens"][rows, where[..., 0]]
        return jnp.where(used, token_logps(params, self._model, before, tokens), 0.0).sum(-1)


def room(size: int, unit: int) -> int:
    """At least `size` and 1: a multiple of `unit` that is one of four between powers of two."""
    units = max(-(-size // unit), 1)
    step = max(1 << (units.bit_length() - 1) >> 2, 1)
    return -(-units // step) * step * unit
