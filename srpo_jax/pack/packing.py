"""Which trees share a row: budgets, splitting of trees that are too large, and the packing plan.

A row has a fixed length, and fixed numbers of targets, segments, sequences, pairs and image
patches, so that the train step compiles once. The plan is a pure function of (sizes, budgets,
seed, epoch): every process computes the same one and batch k is a function of k alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.pack.pairs import Pair
from srpo_jax.pack.tree import Tree
from srpo_jax.pack.tree_layout import TreeLayout, TreeSizes, layout_tree

BUFFER = 256  # trees among which rows are filled; more fill little better and take longer
SAMPLE = 8192  # trees that budgets are estimated from


@dataclasses.dataclass(frozen=True)
class Budgets:
    """The size of every row. `patches` is a multiple of what the vision tower needs."""

    tokens: int
    targets: int
    segments: int
    sequences: int
    pairs: int
    patches: int

    @classmethod
    def fit(
        cls,
        sizes: Sequence[TreeSizes],
        *,
        row_tokens: int = 0,
        token_multiple: int = 64,
        patch_multiple: int = 4,
    ) -> Budgets:
        """Budgets for rows of `row_tokens` tokens (0: as long as the largest tree).

        Tokens are what should fill a row: every other budget holds the most demanding tree, and
        95 % of the rows of a plan that looks at tokens alone (the few others are packed a little
        less full). Rounded up: tokens and targets to `token_multiple`, patches to
        `patch_multiple` (the vision tower's patch_unit), the others to 8.
        """
        table = np.asarray(sizes, np.int64).reshape(-1, len(TreeSizes._fields))
        if not len(table):
            raise UserError("no trees to pack: there is no question to train on")
        tokens = _round_up(row_tokens or table[:, 0].max(), token_multiple)
        alone = table[:: -(-len(table) // SAMPLE)].copy()
        alone[:, 0] = np.minimum(alone[:, 0], tokens)  # what does not fit will be split
        only_tokens = np.where(np.arange(table.shape[1]) == 0, tokens, alone.sum(axis=0))
        rows = [
            row
            for begin in range(0, len(alone), BUFFER)
            for row in _best_fit(
                np.arange(begin, min(begin + BUFFER, len(alone))), alone, only_tokens
            )
        ]
        filled = np.quantile([alone[row].sum(axis=0) for row in rows], 0.95, axis=0)
        need = TreeSizes(*np.maximum(filled, table.max(axis=0)))
        targets = min(tokens, _round_up(need.targets, token_multiple))
        return cls(
            tokens=tokens,
            targets=targets,
            segments=min(targets, _round_up(need.segments, 8)),
            sequences=_round_up(need.sequences, 8),
            pairs=_round_up(need.pairs, 8),
            patches=_round_up(need.patches, patch_multiple),
        )

    def holds(self, sizes: TreeSizes) -> bool:
        """Whether one tree of these sizes fits an empty row."""
        return all(getattr(self, name) >= size for name, size in zip(TreeSizes._fields, sizes))

    def as_sizes(self) -> TreeSizes:
        return TreeSizes(*(getattr(self, name) for name in TreeSizes._fields))


def _round_up(x: float, multiple: int) -> int:
    return max(1, int(np.ceil(x / multiple))) * multiple


def split_tree(
    tree: Tree,
    pairs: Sequence[Pair],
    budgets: Budgets,
    *,
    reference: str = "dataset",
    odds_from: str = "branch",
) -> list[tuple[Tree, list[Pair]]]:
    """[(tree, pairs)] of which every layout fits the budgets; one element if the whole fits.

    The cut is between branch points, never inside one. Each part repeats the prompt and the
    prefix it needs; the pairs keep their weights, the reference path is counted in one part only,
    and `question_share` is divided by the number of parts: the parts' losses add up to the whole's.
    Starting from the last branch point, which shares most of the reference path's tokens, each
    part takes as many points as fit.

    Raises UserError, naming the tree, when the prompt with one branch point, or with the
    reference path, is larger than a row by itself.
    """

    def fits(points: list[int], counted: bool) -> bool:
        part = dataclasses.replace(tree, count_reference=counted)
        chosen = [pair for pair in pairs if tree.branches[pair[0]].at in points]
        layout = layout_tree(part, chosen, reference=reference, odds_from=odds_from)
        return budgets.holds(layout.sizes)

    points = sorted({tree.branches[pair[0]].at for pair in pairs}, reverse=True)
    counts = tree.count_reference
    if fits(points, counts):
        return [(tree, list(pairs))]
    groups: list[tuple[list[int], bool]] = []  # (points, whether the reference is counted)
    if counts and reference == "dataset":
        groups.append(([], True))
    for point in points:
        if groups and fits(groups[-1][0] + [point], groups[-1][1]):
            groups[-1][0].append(point)
        else:
            groups.append(([point], False))
    for group in groups:
        if not fits(*group):
            raise UserError(_too_large(tree, pairs, budgets, group, reference, odds_from))
    share = tree.question_share / len(groups)
    return [
        (
            dataclasses.replace(tree, count_reference=counted, question_share=share),
            [pair for pair in pairs if tree.branches[pair[0]].at in group],
        )
        for group, counted in groups
    ]


def lay_out_within(
    tree: Tree,
    pairs: Sequence[Pair],
    budgets: Budgets,
    *,
    reference: str = "dataset",
    odds_from: str = "branch",
) -> list[TreeLayout]:
    """The layout of the tree, or those of its parts where it is larger than a row (split_tree)."""
    whole = layout_tree(tree, pairs, reference=reference, odds_from=odds_from)
    if budgets.holds(whole.sizes):
        return [whole]
    parts = split_tree(tree, pairs, budgets, reference=reference, odds_from=odds_from)
    return [layout_tree(*part, reference=reference, odds_from=odds_from) for part in parts]


def _too_large(
    tree: Tree,
    pairs: Sequence[Pair],
    budgets: Budgets,
    group: tuple[list[int], bool],
    reference: str,
    odds_from: str,
) -> str:
    points, counted = group
    part = dataclasses.replace(tree, count_reference=counted)
    chosen = [pair for pair in pairs if tree.branches[pair[0]].at in points]
    sizes = layout_tree(part, chosen, reference=reference, odds_from=odds_from).sizes
    over = ", ".join(
        f"{size} {name} (a row has {getattr(budgets, name)})"
        for name, size in zip(TreeSizes._fields, sizes)
        if size > getattr(budgets, name)
    )
    what = f"the branch point after {points[0]} steps" if points else "its reference path"
    return (
        f"tree {tree.id!r}: the prompt with {what} alone needs {over}: "
        "raise pack.row_tokens, or explore fewer or shorter branches"
    )


def plan_rows(
    sizes: Sequence[TreeSizes], budgets: Budgets, *, seed: int, epoch: int, buffer: int = BUFFER
) -> list[list[int]]:
    """Rows as lists of indices into `sizes`; every index exactly once. A pure function.

    Best-fit decreasing by tokens inside shuffled buffers of `buffer` trees, rows shuffled again
    inside a buffer (best-fit would put the large trees first). A buffer of 256 fills 97 % of rows
    twice as long as the mean tree.

    Raises UserError if one item does not fit an empty row (split it first).
    """
    table = np.asarray(sizes, np.int64).reshape(-1, len(TreeSizes._fields))
    limit = np.asarray(budgets.as_sizes(), np.int64)
    too_large = np.flatnonzero((table > limit).any(axis=1))
    if len(too_large):
        raise UserError(
            f"packing: item {too_large[0]} of sizes {tuple(table[too_large[0]])} does "
            f"not fit a row of {tuple(limit)}; split it or raise pack.row_tokens"
        )
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(table))
    plan: list[list[int]] = []
    for begin in range(0, len(table), buffer):
        rows = _best_fit(shuffled[begin : begin + buffer], table, limit)
        plan.extend(rows[i] for i in rng.permutation(len(rows)))
    return plan


def _best_fit(indices: np.ndarray, table: np.ndarray, limit: np.ndarray) -> list[list[int]]:
    rows: list[list[int]] = []
    free = np.zeros((len(indices), len(limit)), np.int64)
    for index in indices[np.argsort(-table[indices, 0], kind="stable")]:
        fitting = np.flatnonzero((free[: len(rows)] >= table[index]).all(axis=1))
        if len(fitting):
            row = int(fitting[np.argmin(free[fitting, 0])])
        else:
            row = len(rows)
            rows.append([])
            free[row] = limit
        rows[row].append(int(index))
        free[row] -= table[index]
    return rows
