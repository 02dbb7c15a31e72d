"""Which trees share a row, and the row itself: budgets, the packing plan, the arrays of a batch.

A row has a fixed length, and fixed numbers of targets, segments, sequences, pairs and image patches
(its budgets), so that the train step compiles once. A tree larger than a row is split at branch
points. The plan (which trees share a row) is a pure function of (sizes, budgets, seed, epoch):
every process computes the same one and batch k is a function of k alone.

In a row trees stand one after another, all indices shifted: a second tree that begins at token 100
has subtree_end + 100. The prompt's subtree ends with its tree, so the trees of a row do not see
each other. Everything that differs between batches is data, not shape.

The batch (`fill_row`, numpy): the model inputs (tokens, positions, subtree_end, image_index,
patches and the family's per-patch arrays) and, with B rows of N targets, S segments, Q sequences
and R pairs:

target_pos, target_parent int32 [B, N]  row indices of a target and of the token before it on its
                                        path (padding 0)
target_segment int32 [B, N]             segment of the target; padding S, which is dropped
seq_segments float32 [B, Q, S]          1 where the segment belongs to the sequence
seq_len float32 [B, Q]                  targets of the sequence (padding 1)
ref_weight float32 [B, Q]               weight of a sequence in L_ref
pair_chosen, pair_rejected int32 [B, R] sequence indices (padding 0)
pair_weight float32 [B, R]              weight of a pair in L_exp (padding 0)

The weights are already divided by the number of questions of the whole batch, so the loss is a
plain sum over rows: any packing, mesh or accumulation gives the same loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.pack.skeleton import Skeleton
from srpo_jax.pack.tree import Tree
from srpo_jax.pack.tree_layout import Pair, TreeLayout, TreeSizes, layout_tree, taught_at

REF_REDUCTIONS = ("question", "token")
BUFFER = 256  # trees among which rows are filled; more fill little better and take longer
SAMPLE = 8192  # trees that budgets are estimated from


class TooLong(UserError):
    """A tree of which one branch point, or the reference path, is larger than a row."""


@dataclasses.dataclass(frozen=True)
class Budgets:
    """How much every row has room for. patches: a multiple of the vision tower's patch_unit."""

    tokens: int
    targets: int
    segments: int
    sequences: int
    pairs: int
    patches: int

    @classmethod
    def fit(
        cls,
        sizes: Sequence[TreeSizes] | np.ndarray,
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
        # Fill rows by tokens alone, with budgets that never bind for everything else, and look how
        # much of the others they hold.
        alone = table[:: -(-len(table) // SAMPLE)].copy()
        alone[:, 0] = np.minimum(alone[:, 0], tokens)  # what does not fit will be split
        only_tokens = np.where(np.arange(table.shape[1]) == 0, tokens, alone.sum(axis=0))
        rows = [
            row
            for begin in range(0, len(alone), BUFFER)
            for row in best_fit(
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
        """The same numbers, in the order of TreeSizes."""
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

    Raises TooLong, naming the tree, when the prompt with one branch point, or with the reference
    path, is larger than a row by itself.
    """

    def part_of(points: Sequence[int], counted: bool, share: float) -> Tree:
        return dataclasses.replace(
            tree,
            count_reference=counted,
            taught=taught_at(tree, points),
            question_share=share,
        )

    def sizes_of(points: Sequence[int], counted: bool) -> TreeSizes:
        part = part_of(points, counted, tree.question_share)
        chosen = [pair for pair in pairs if tree.branches[pair[0]].at in points]
        return layout_tree(part, chosen, reference=reference, odds_from=odds_from).sizes

    groups = part_groups(tree, pairs, budgets, sizes_of, reference=reference)
    if groups is None:
        return [(tree, list(pairs))]
    share = tree.question_share / len(groups)
    return [
        (
            part_of(group, counted, share),
            [pair for pair in pairs if tree.branches[pair[0]].at in group],
        )
        for group, counted in groups
    ]


def part_groups(
    tree: Tree | Skeleton,
    pairs: Sequence[Pair],
    budgets: Budgets,
    sizes_of: Callable[[Sequence[int], bool], TreeSizes],
    *,
    reference: str = "dataset",
) -> list[tuple[list[int], bool]] | None:
    """The parts of split_tree: [(branch points, whether the reference path is counted)]; None when
    the whole tree fits. sizes_of: of the part that these two say. Raises TooLong.
    """

    def fits(points: list[int], counted: bool) -> bool:
        return budgets.holds(sizes_of(points, counted))

    laid_out = [k for k, *_ in (*pairs, *tree.taught)]
    points = sorted({tree.branches[k].at for k in laid_out}, reverse=True)
    counts = tree.count_reference
    if fits(points, counts):
        return None
    groups: list[tuple[list[int], bool]] = []
    if counts and reference == "dataset":
        groups.append(([], True))
    for point in points:
        if groups and fits(groups[-1][0] + [point], groups[-1][1]):
            groups[-1][0].append(point)
        else:
            groups.append(([point], False))
    for group, counted in groups:
        sizes = sizes_of(group, counted)
        if not budgets.holds(sizes):
            raise TooLong(_too_large(tree.id, budgets, group, sizes))
    return groups


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


def _too_large(name: str, budgets: Budgets, points: Sequence[int], sizes: TreeSizes) -> str:
    """The message for a part that is larger than a row by itself."""
    over = ", ".join(
        f"{size} {what} (a row has {getattr(budgets, what)})"
        for what, size in zip(TreeSizes._fields, sizes)
        if size > getattr(budgets, what)
    )
    part = f"the branch point after {points[0]} steps" if points else "its reference path"
    return (
        f"tree {name!r}: the prompt with {part} alone needs {over}: raise pack.row_tokens, explore "
        "fewer or shorter branches, or leave such trees out with pack.too_long=drop"
    )


def plan_rows(
    sizes: Sequence[TreeSizes] | np.ndarray,
    budgets: Budgets,
    *,
    seed: int,
    epoch: int,
    buffer: int = BUFFER,
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
        rows = best_fit(shuffled[begin : begin + buffer], table, limit)
        plan.extend(rows[i] for i in rng.permutation(len(rows)))
    return plan


def best_fit(indices: np.ndarray, table: np.ndarray, limit: np.ndarray) -> list[list[int]]:
    """Packs the trees `indices` of `table` [trees, sizes] into rows of `limit`, largest first: each
    into the row that it fits into and that has the fewest free tokens, or into a new one."""
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


def fill_row(
    layouts: Sequence[TreeLayout],
    budgets: Budgets,
    *,
    questions: float,
    ref_tokens: float | None = None,
    paired: float | None = None,
    no_patches: dict[str, np.ndarray] | None = None,
) -> dict:
    """One row (the arrays above without the B axis). An empty list gives a row of padding.

    questions:  number of questions of the whole batch (see count_questions)
    ref_tokens: None: L_ref is the mean over questions of each one's token mean. A number (the sum
                of `layout.ref_tokens` over the whole batch): the mean over all reference tokens.
    paired:     what L_exp is divided by: how many of the questions have a pair; None: questions
    no_patches: the `vision` arrays of a prompt without pictures; needed only for an empty list
    """
    paired = questions if paired is None else paired
    # How much of the row is used so far: tokens, targets, segments, sequences, pairs, patches. They
    # are what the indices of the next tree are shifted by.
    row = _empty_row(budgets, layouts[0].prompt.vision if layouts else no_patches)
    t = n = s = q = r = p = features = 0
    segment_ids = {name: 0 for name in row if name.endswith("_seg")}  # used in this row so far
    for layout in layouts:
        sizes, prompt = layout.sizes, layout.prompt
        tokens = slice(t, t + sizes.tokens)
        row["tokens"][tokens] = layout.tokens
        row["positions"][:, tokens] = layout.positions
        row["subtree_end"][tokens] = layout.subtree_end + t
        row["image_index"][tokens] = np.where(
            layout.image_index >= 0, layout.image_index + features, layout.image_index
        )

        targets = slice(n, n + sizes.targets)
        row["target_pos"][targets] = layout.target_pos + t
        row["target_parent"][targets] = layout.target_parent + t
        row["target_segment"][targets] = layout.target_segment + s

        sequences = slice(q, q + sizes.sequences)
        for number, segments in enumerate(layout.sequences):
            row["seq_segments"][q + number, s + np.asarray(segments, np.int64)] = 1
        row["seq_len"][sequences] = layout.seq_len
        row["ref_weight"][sequences] = (
            layout.ref_weight / questions
            if ref_tokens is None
            else layout.ref_weight * layout.seq_len / ref_tokens
        )

        pairs = slice(r, r + sizes.pairs)
        row["pair_chosen"][pairs] = layout.pair_chosen + q
        row["pair_rejected"][pairs] = layout.pair_rejected + q
        row["pair_weight"][pairs] = layout.pair_weight / paired

        if sizes.patches:
            patches = slice(p, p + sizes.patches)
            for name, values in prompt.vision.items():
                row[name][patches] = values + segment_ids.get(name, 0)
            for name in segment_ids:
                segment_ids[name] += int(prompt.vision[name].max()) + 1
            features += prompt.features
        t += sizes.tokens
        n += sizes.targets
        s += sizes.segments
        q += sizes.sequences
        r += sizes.pairs
        p += sizes.patches
    return row


def _empty_row(budgets: Budgets, vision: dict[str, np.ndarray] | None) -> dict:
    """A row of padding. vision: arrays of any prompt, which say what a patch consists of."""
    if vision is None:
        raise ValueError("fill_row: an empty row needs no_patches")
    b = budgets
    return {
        "tokens": np.zeros(b.tokens, np.int32),
        "positions": np.zeros((3, b.tokens), np.int32),
        "subtree_end": np.arange(1, b.tokens + 1, dtype=np.int32),  # padding sees only itself
        "image_index": np.full(b.tokens, -1, np.int32),
        **{
            name: np.full(
                (b.patches, *values.shape[1:]), -1 if name.endswith("_seg") else 0, values.dtype
            )
            for name, values in vision.items()
        },
        "target_pos": np.zeros(b.targets, np.int32),
        "target_parent": np.zeros(b.targets, np.int32),
        "target_segment": np.full(b.targets, b.segments, np.int32),
        "seq_segments": np.zeros((b.sequences, b.segments), np.float32),
        "seq_len": np.ones(b.sequences, np.float32),
        "ref_weight": np.zeros(b.sequences, np.float32),
        "pair_chosen": np.zeros(b.pairs, np.int32),
        "pair_rejected": np.zeros(b.pairs, np.int32),
        "pair_weight": np.zeros(b.pairs, np.float32),
    }


def count_questions(layouts: Sequence[TreeLayout]) -> float:
    """How many questions these layouts are; the parts of a split tree make one together."""
    return float(sum(layout.question_share for layout in layouts))


def stack_rows(rows: Sequence[dict]) -> dict:
    """A batch: every array of the rows stacked on a new first axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_batch(
    plan: Sequence[Sequence[TreeLayout]],
    budgets: Budgets,
    *,
    ref_reduction: str = "question",
    no_patches: dict[str, np.ndarray] | None = None,
) -> dict:
    """The batch of all rows of `plan` (lists of layouts), normalised over exactly these rows.

    A process that holds only some rows of the global batch calls fill_row with the normalisers
    of the whole batch instead.
    """
    if ref_reduction not in REF_REDUCTIONS:
        raise ValueError(f"ref_reduction {ref_reduction!r} not in {REF_REDUCTIONS}")
    layouts = [layout for row in plan for layout in row]
    questions = max(count_questions(layouts), 1e-9)
    ref_tokens = None
    if ref_reduction == "token":
        ref_tokens = max(sum(layout.ref_tokens for layout in layouts), 1e-9)
    if no_patches is None and layouts:
        no_patches = {name: x[:0] for name, x in layouts[0].prompt.vision.items()}
    return stack_rows(
        [
            fill_row(
                row, budgets, questions=questions, ref_tokens=ref_tokens, no_patches=no_patches
            )
            for row in plan
        ]
    )
