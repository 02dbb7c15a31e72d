"""Fill rows of fixed shapes with laid-out trees: the batch that the train step takes (numpy).

Trees stand one after another; `subtree_end` of a tree's prompt ends with the tree, so the trees
of a row do not see each other. Everything that differs between batches is data, not shape.

The batch: the model inputs (tokens, positions, subtree_end, image_index, patches and the family's
per-patch arrays) and, with B rows of N targets, S segments, Q sequences and R pairs:

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

from collections.abc import Sequence

import numpy as np

from srpo_jax.pack.packing import Budgets
from srpo_jax.pack.tree_layout import TreeLayout

REF_REDUCTIONS = ("question", "token")


def fill_row(
    layouts: Sequence[TreeLayout],
    budgets: Budgets,
    *,
    questions: float,
    ref_tokens: float | None = None,
    no_patches: dict[str, np.ndarray] | None = None,
) -> dict:
    """One row (the arrays above without the B axis). An empty list gives a row of padding.

    questions:  number of questions of the whole batch (see count_questions)
    ref_tokens: None: L_ref is the mean over questions of each one's token mean. A number (the sum
                of `layout.ref_tokens` over the whole batch): the mean over all reference tokens.
    no_patches: the `vision` arrays of a prompt without pictures; needed only for an empty list
    """
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
        row["pair_weight"][pairs] = layout.pair_weight / questions

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
