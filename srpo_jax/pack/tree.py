"""The reasoning tree of one question: a prompt, a reference path and the branches sampled from it.

This is the form in which a question enters packing: token ids only, no text, no verdict but safe or
unsafe. tree_layout.py chooses the pairs and lays the tree out, packing.py puts trees into rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.pack.trie import common_prefix


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """One sampled continuation, to its end.

    at:     how many pieces of the reference path stand before it (0 = right after the prompt)
    tokens: int32 [m], m >= 1, the branch's own tokens (the prefix is not repeated here)
    safe:   the arbiter's verdict; branches with an ERROR verdict never become a Branch
    """

    at: int
    tokens: np.ndarray
    safe: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """One question.

    id:       name for messages
    prompt:   the encoded prompt. Read here: .tokens int32 [n], .positions int32 [3, n],
              .next_position int, .image_index int32 [n]; and by packing.py the patch arrays.
    pieces:   the reference path, int32 arrays: n_steps steps, then the reply
    branches: any order; 0 <= at <= n_steps (the reply is never part of a prefix)
    question_share:  how much of a question this counts as in a batch's number of questions: 1.0,
              or 1/parts for each part of a split tree. It does not scale the loss weights.
    count_reference: whether L_ref of the reference path is counted here (one part of a split
              tree counts it, the others only use prefixes of it as context)
    taught:   (branch, weight): L_ref counts the branch's own tokens too, see tree_layout.teach
    """

    id: str
    prompt: Any
    pieces: tuple[np.ndarray, ...]
    branches: tuple[Branch, ...]
    question_share: float = 1.0
    count_reference: bool = True
    taught: tuple[tuple[int, float], ...] = ()

    def __post_init__(self):
        if not self.pieces or any(len(piece) == 0 for piece in self.pieces):
            raise UserError(f"tree {self.id!r}: the reference path has an empty piece or none")
        for k, branch in enumerate(self.branches):
            if not 0 <= branch.at < len(self.pieces):
                raise UserError(
                    f"tree {self.id!r}: branch {k} starts after {branch.at} steps, but the "
                    f"reference path has {len(self.pieces) - 1}"
                )
            if len(branch.tokens) == 0:
                raise UserError(f"tree {self.id!r}: branch {k} has no tokens")

    @property
    def reference(self) -> np.ndarray:
        """int32 [m]: the tokens of the whole reference path (steps and reply)."""
        return np.concatenate(self.pieces).astype(np.int32)

    def two_sides(self, chosen: int, rejected: int, odds_from: str) -> bool:
        """Whether two branches of the same point, by their numbers, make a pair: see
        tree_layout.choose_pairs."""
        one, other = self.branches[chosen].tokens, self.branches[rejected].tokens
        if odds_from == "divergence":
            return common_prefix(one, other) < min(len(one), len(other))
        return not np.array_equal(one, other)

    def prefix(self, at: int) -> np.ndarray:
        """int32 [m]: the tokens of the first `at` pieces of the reference path."""
        return np.concatenate((np.zeros(0, np.int32), *self.pieces[:at])).astype(np.int32)


def remove_duplicates(tree: Tree) -> Tree:
    """The tree with one of each group of branches that have the same `at` and the same tokens.

    RPO removes duplicates before pairing (arXiv 2410.10858 section 2; `sorted(set(...))` in its
    code). Copies that were judged both safe and unsafe say nothing and are all removed.
    """
    verdicts: dict[tuple[int, bytes], set[bool]] = {}
    for branch in tree.branches:
        verdicts.setdefault(_key(branch), set()).add(bool(branch.safe))
    kept, seen = [], set()
    for branch in tree.branches:
        key = _key(branch)
        if key not in seen and len(verdicts[key]) == 1:
            seen.add(key)
            kept.append(branch)
    return dataclasses.replace(tree, branches=tuple(kept))


def _key(branch: Branch) -> tuple[int, bytes]:
    return branch.at, np.asarray(branch.tokens, np.int32).tobytes()
