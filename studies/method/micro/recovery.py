"""Lessons of recovery: continuations of the policy's own unsafe steps that end safe."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from srpo_jax.pack.tree import Branch, Tree
from srpo_jax.pack.tree_layout import TreeLayout, choose_pairs, layout_tree
from studies.method.micro import world
from studies.method.micro.data import Data, Sampled, prompt_of
from studies.method.micro.recipes import Recipe


@dataclasses.dataclass
class Start:
    """A prefix of the policy's own that ends in its first unsafe step, and what follows it."""

    number: int
    own: np.ndarray
    at: int  # pieces in the prefix
    after: list[tuple[np.ndarray, bool]] = dataclasses.field(default_factory=list)

    @property
    def prefix(self) -> np.ndarray:
        return self.own[: world.BORDERS[self.at]]


def starts_of(recipe: Recipe, data: Data, sampled: Sampled, numbers: Sequence[int]) -> list[Start]:
    """Up to four of every risky question, with 16 continuations of a question in all."""
    starts: list[Start] = []
    for number in numbers:
        question = data.questions[number]
        if not question.risky:
            continue
        found: dict[bytes, Start] = {}
        for own, _ in sampled.at(number, 0):
            lost = np.flatnonzero(~world.judge([question], own[None]).concerned[0, :4])
            if len(lost):
                start = Start(number, own, 3 + int(lost[0]))
                found.setdefault(start.prefix.tobytes(), start)
        few = list(found.values())[:4]
        starts += few
    if recipe.from_reference:
        return starts
    many = Counter(start.number for start in starts)
    after = Sampled(data, sampled.params, sampled.seed + 1)
    wanted = [(s.number, s.prefix, s.at, 16 // many[s.number]) for s in starts]
    after.add(wanted)
    for start in starts:
        known, size = start.prefix.tobytes(), len(start.prefix)
        for path, good in after.at(start.number, start.at):
            if path[:size].tobytes() == known:
                start.after.append((path[size:], good))
    return starts


def recovery(
    recipe: Recipe, data: Data, start: Start, path: np.ndarray, few: int
) -> list[TreeLayout]:
    """The layout of a start: continuations that end safe are taught, or preferred to the others.
    path: of the question's reference, whose rest is the continuation of recipe.from_reference.
    Nothing if none ends safe.
    """
    rest = start.after
    if recipe.from_reference:
        rest = [(path[world.BORDERS[start.at] :], True)]
    good = [k for k, (_, fine) in enumerate(rest) if fine]
    if not good:
        return []
    branches = tuple(Branch(start.at, tokens, fine) for tokens, fine in rest)
    asked = prompt_of(data.questions[start.number])
    tree = Tree("recovery", asked, world.pieces(start.own), branches, 0.0, False)
    taught = [(k, recipe.recover / len(good) / few) for k in good] if recipe.recover else []
    pairs = [
        (c, r, w * recipe.recover_lam / (recipe.lam or 1.0) / few)
        for c, r, w in (choose_pairs(tree) if recipe.recover_lam else [])
    ]
    tree = dataclasses.replace(tree, taught=tuple(taught))
    return [layout_tree(tree, pairs)] if taught or pairs else []
