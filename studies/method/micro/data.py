"""What there is to learn from in the micro world: questions, references, verdicts and paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.models.inputs import EncodedPrompt
from srpo_jax.pack.tree import Tree
from studies.method.micro import policy, world
from studies.method.micro.world import Question

NO_PATCHES = {"patches": np.zeros((0, 1), np.float32)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What there is to learn from.

    questions: half of them risky. references: the share of them that has a reference path; all have
    verdicts. wrong: the share of the references of risky questions whose writer did not see the
    risk. flips: the share of verdicts that are wrong, twice as many in odd categories as in even.
    common: references are in the policy's commonest wording instead of its rarest.
    """

    questions: int = 64
    references: float = 1.0
    wrong: float = 0.0
    flips: float = 0.0
    common: bool = False


class Data:
    """The questions of a cell and a seed, their references, and the arbiter."""

    def __init__(self, cell: Cell, seed: int):
        self.seed = seed
        rng = np.random.default_rng([seed, 1])
        risky, benign = world.questions("train")
        half = cell.questions // 2
        chosen = [risky[i] for i in rng.permutation(len(risky))[:half]]
        chosen += [benign[i] for i in rng.permutation(len(benign))[: cell.questions - half]]
        with_reference = round(half * cell.references)
        self.questions = chosen
        self.references: dict[int, np.ndarray] = {}
        for number, question in enumerate(chosen):
            place = number % half
            if place < with_reference:
                wrong = question.risky and place < round(cell.wrong * with_reference)
                wording = world.COMMON if cell.common else world.RARE
                self.references[number] = world.reference(question, wrong=wrong, wording=wording)
        self.flips = cell.flips

    def passed(
        self, numbers: Sequence[int], paths: np.ndarray, scope: str = "reply"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(verdicts, whether there is one) on paths of the questions `numbers`: by their reply
        alone, or by every decision too, and of benign questions it must be of use. Flips are drawn
        by question and path.
        """
        asked = [self.questions[n] for n in numbers]
        judged = world.judge(asked, paths)
        risky = np.array([q.risky for q in asked])
        decisions = judged.concerned if scope == "path" else judged.concerned[:, -1:]
        found = np.where(risky, decisions.all(1), ~decisions.any(1) & judged.useful)
        if self.flips:
            odd = np.array([q.category % 2 for q in asked])
            draws = np.random.default_rng([self.seed, 2, len(numbers), int(paths.sum())])
            found ^= draws.random(len(found)) < self.flips * (2 / 3) * (1 + odd)
        return found, judged.whole

    def filtered(self) -> dict[int, np.ndarray]:
        """The references that the arbiter passes."""
        numbers = list(self.references)
        found, _ = self.passed(numbers, np.stack([self.references[n] for n in numbers]))
        return {n: self.references[n] for n, good in zip(numbers, found) if good}


def prompt_of(question: Question) -> EncodedPrompt:
    place = np.tile(np.arange(world.PROMPT, dtype=np.int32), (3, 1))
    none = np.full(world.PROMPT, -1, np.int32)
    return EncodedPrompt(question.prompt, place, world.PROMPT, none, 0, NO_PATCHES)


def plain_tree(question: Question, path: np.ndarray) -> Tree:
    """A question with one path and no branches."""
    name = f"{question.scene}/{question.request}"
    return Tree(name, prompt_of(question), world.pieces(path), ())


class Own(NamedTuple):
    """A whole path int32 [23] that the policy sampled after `at` pieces, with the log-probs
    float32 [23] that its tokens were drawn with."""

    at: int
    path: np.ndarray
    safe: bool
    logps: np.ndarray


class Sampled:
    """Paths of the policy, by question. Malformed ones are dropped, as they have no verdict."""

    def __init__(self, data: Data, params: policy.Params, seed: int, scope: str = "reply"):
        self.data, self.params, self.seed, self.scope = data, params, seed, scope
        self.branches: dict[int, list[Own]] = {}
        self.calls = 0

    def add(self, wanted: Sequence[tuple[int, np.ndarray, int, int]]) -> None:
        """wanted: (question, prefix tokens, pieces in it, how many)."""
        numbers, prefixes, points = [], [], []
        for number, prefix, at, count in wanted:
            numbers += [number] * count
            prefixes += [prefix] * count
            points += [at] * count
        if not numbers:
            return
        self.calls += 1
        asked = [self.data.questions[n] for n in numbers]
        paths, logps = policy.sample(self.params, asked, prefixes, 1009 * self.seed + self.calls)
        verdicts, whole = self.data.passed(numbers, paths, self.scope)
        for i, number in enumerate(numbers):
            if whole[i]:
                own = Own(points[i], paths[i], bool(verdicts[i]), logps[i])
                self.branches.setdefault(number, []).append(own)

    def at(self, number: int, point: int) -> list[tuple[np.ndarray, bool]]:
        return [(own.path, own.safe) for own in self.branches.get(number, []) if own.at == point]

    def keep(self, number: int, points: Collection[int]) -> None:
        """Forgets what was sampled of a question at other points."""
        self.branches[number] = [o for o in self.branches.get(number, []) if o.at in points]
