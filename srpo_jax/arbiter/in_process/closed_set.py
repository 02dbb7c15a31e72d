"""A JSON answer of which only the labels are open: what is fixed is written, labels are chosen.

The places of the labels follow from the JSON schema of the answer, whose strings must all be
enumerations (Rubric.labels_only). A place is filled with the likeliest of its words, then comes the
next, so that a later label is judged given the earlier ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srpo_jax.arbiter.chat.messages import Token
from srpo_jax.errors import UserError

_HOLE = "\ue000"  # no schema has it in a key


@dataclass(frozen=True)
class Form:
    """The answer as pieces of fixed text with a label between each two: `pieces[i]`, one of
    `words[i]`, `pieces[i + 1]`.
    """

    pieces: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    def texts(self, chosen: Sequence[str]) -> list[str]:
        """The answer up to and with the piece behind the next label, for each of its words."""
        place = len(chosen)
        before = self.written(chosen)
        return [f"{before}{word}{self.pieces[place + 1]}" for word in self.words[place]]

    def written(self, chosen: Sequence[str]) -> str:
        """The answer up to where the label behind the chosen ones begins."""
        pairs = zip(self.pieces, chosen)
        return "".join(f"{piece}{word}" for piece, word in pairs) + self.pieces[len(chosen)]


def form_of(schema: Mapping[str, Any]) -> Form:
    """The form of a schema of nested objects with enumerations. Errors: UserError for another."""
    words: list[tuple[str, ...]] = []

    def shaped(part: Mapping[str, Any]) -> Any:
        if part.get("type") == "object":
            return {key: shaped(inner) for key, inner in part["properties"].items()}
        if not part.get("enum"):
            raise UserError("only an answer of labels alone can be chosen: judge.answer=generate")
        words.append(tuple(part["enum"]))
        return _HOLE

    written = json.dumps(shaped(schema), ensure_ascii=False)
    return Form(tuple(written.split(_HOLE)), tuple(words))


def split_choices(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(int32 [m] that all begin with, int32 [n] for each: what tells it from the others).

    encoded: ids of texts that differ in one word. Of what all of them end with, the first token
    stays, so that "safe" and "safe_with_warning" end where they end.
    """
    shortest = min(map(len, encoded))
    same = 0
    while same < shortest and len({ids[same] for ids in encoded}) == 1:
        same += 1
    ends = 0
    while ends < shortest - same and len({ids[-1 - ends] for ids in encoded}) == 1:
        ends += 1
    cut = max(ends - 1, 0)
    texts = tuple(np.asarray(ids[same : len(ids) - cut], np.int32) for ids in encoded)
    if not all(map(len, texts)):
        raise UserError("two labels cannot be told apart by their tokens: name them otherwise")
    return np.asarray(encoded[0][:same], np.int32), texts


class Filling:
    """One answer while its labels are chosen. encode: ids of a text that begins an answer."""

    def __init__(self, schema: Mapping[str, Any], encode: Callable[[str], list[int]]):
        self._form, self._encode = form_of(schema), encode
        self._chosen: list[str] = []
        self._tokens: list[Token] = []

    @property
    def open(self) -> bool:
        """Whether a label is still to be chosen."""
        return len(self._chosen) < len(self._form.words)

    def question(self) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """What ChoiceScorer is asked next: (given, texts)."""
        return split_choices([self._encode(text) for text in self._form.texts(self._chosen)])

    def choose(self, scores: np.ndarray) -> None:
        """Takes the likeliest word; scores: log-probabilities of the words, in their order."""
        place = len(self._chosen)
        words = self._form.words[place]
        best = words[int(np.argmax(scores))]
        self._tokens += [
            (self._form.pieces[place].removeprefix('"') if place else self._form.pieces[0], None),
            (f'{best}"', {f'{word}"': float(s) for word, s in zip(words, scores, strict=True)}),
        ]
        self._chosen.append(best)

    def answer(self) -> str:
        """The whole answer, once nothing is open."""
        return self._form.written(self._chosen)

    def tokens(self) -> Iterator[Token]:
        """The answer in pieces, a label with its closing quotation mark being one of them, and with
        the log-probabilities of all labels that could stand there.
        """
        yield from self._tokens
        yield self._form.pieces[-1].removeprefix('"'), None
