r"""Which pairs of a question are contrasted, and the question as one run of tokens, each once.

`choose_pairs` chooses pairs of a safe (chosen) and an unsafe (rejected) branch of the same branch
point. `layout_tree` inserts the reference path and the branches of these pairs into a trie,
compressed to runs of tokens ("nodes"), so that tokens which several of them share, from the start
on, stand once. Prompt and trie are written down depth first: a subtree is one interval of the row.
Children are visited largest subtree first, which leaves 1.3-1.5x fewer active attention blocks than
smallest first. Three integers per token then say everything:

subtree_end  query i sees key j iff j <= i < subtree_end[j]
parent       the token before it on its path; its hidden state predicts the token
positions    by depth on the path, so a path sees exactly what it would see alone

An example: prompt p, reference path a b c, after the prompt a safe branch a d and an unsafe one e.

    p - a - b - c        index         0   1   2   3   4   5
     \   \- d             token         p   a   b   c   d   e
      \- e               parent       -1   0   1   2   1   0
                         subtree_end   6   5   4   4   5   6      d (4) sees p and a, which end
                         position      0   1   2   3   2   1      behind it, but not b and c

The loss is defined over *sequences*: the reference path, a branch's own tokens, or a side of a
pair. *Targets* are the tokens that belong to a sequence; *segments* are maximal runs of targets
that belong to the same sequences, so that a sequence is a set of segments and the log-prob of a
sequence is a sum of segment sums. Here: segments 0 = a, 1 = b c, 2 = d, 3 = e; the reference path
is (0, 1), the safe branch (0, 2), the unsafe one (3).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from srpo_jax.pack.tree import Tree
from srpo_jax.pack.trie import Trie, common_prefix

PAIRINGS = ("all", "one", "rpo_code")
BRANCH_POINTS = ("all", "first")
REFERENCES = ("dataset", "chosen", "none")
ODDS_FROM = ("branch", "divergence")

Pair = tuple[int, int, float]  # chosen branch, rejected branch, weight


class Branched(Protocol):
    """A tree as far as pairs are concerned: a Tree, or its skeleton."""

    @property
    def id(self) -> str: ...

    @property
    def pieces(self) -> Sequence[Any]: ...

    @property
    def branches(self) -> Sequence[Any]: ...

    @property
    def taught(self) -> tuple[tuple[int, float], ...]: ...

    def two_sides(self, chosen: int, rejected: int, odds_from: str) -> bool: ...


def choose_pairs(
    tree: Branched,
    *,
    pairing: str = "all",
    max_pairs: int = 8,
    branch_points: str = "all",
    odds_from: str = "branch",
    seed: int = 0,
    epoch: int = 0,
) -> list[Pair]:
    """[(index of the chosen branch, index of the rejected branch, weight)], ordered by point.

    The weights sum to 1 if there is any pair. A pure function of its arguments. pairing:

    "all"       every safe x unsafe pair; L_exp is the mean over branch points that have a pair of
                the mean over the point's pairs (in a tree, more pairs cost nothing)
    "one"       one pair per branch point, drawn by (seed, epoch): RPO eq. 9, arXiv 2410.10858
    "rpo_code"  all pairs of all points pooled, at most `max_pairs` of them drawn by (seed, epoch),
                equal weights: RPO's code, `ReasonPathsCollator`, where max_group_size=8 (points
                with many pairs dominate)

    branch_points="first" keeps only branches right after the prompt (whole paths: the ORPO and
    DPO baselines). Pairs of identical branches are left out; so are, with
    odds_from="divergence", pairs of which one branch is a beginning of the other, because
    nothing is left of it after the common tokens. They are left out before weights are made.
    """
    if pairing not in PAIRINGS or branch_points not in BRANCH_POINTS:
        raise ValueError(
            f"pairing {pairing!r} not in {PAIRINGS}, or "
            f"branch_points {branch_points!r} not in {BRANCH_POINTS}"
        )
    points = [0] if branch_points == "first" else range(len(tree.pieces))
    by_point = [found for found in (_pairs_at(tree, at, odds_from) for at in points) if found]
    if not by_point:
        return []
    # crc32, not hash(): the same draw in every process.
    rng = np.random.default_rng([seed, epoch, zlib.crc32(tree.id.encode())])
    if pairing == "rpo_code":
        pool = [pair for pairs in by_point for pair in pairs]
        drawn = sorted(rng.permutation(len(pool))[:max_pairs])
        return [(*pool[i], 1.0 / len(drawn)) for i in drawn]
    if pairing == "one":
        by_point = [[pairs[rng.integers(len(pairs))]] for pairs in by_point]
    return [(*pair, 1.0 / (len(by_point) * len(pairs))) for pairs in by_point for pair in pairs]


def _pairs_at(tree: Branched, at: int, odds_from: str) -> list[tuple[int, int]]:
    here = [k for k, branch in enumerate(tree.branches) if branch.at == at]
    return [
        (c, r)
        for c in here
        if tree.branches[c].safe
        for r in here
        if not tree.branches[r].safe
        if tree.two_sides(c, r, odds_from)
    ]


T = TypeVar("T", bound=Branched)


def teach(tree: T, coef: float) -> T:
    """The tree (or its skeleton) with its safe branches taught: L_ref counts each one's own tokens,
    all of them together `coef` times as much as the reference path. This is rejection-sampled SFT
    (RFT, arXiv 2308.01825), from every prefix.
    """
    safe = [k for k, branch in enumerate(tree.branches) if branch.safe] if coef else []
    taught = tuple((k, coef / len(safe)) for k in safe)
    return dataclasses.replace(cast(Any, tree), taught=taught)


def taught_at(tree: Branched, points: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Of what a tree teaches, that of these branch points: a part of it teaches no other."""
    return tuple(each for each in tree.taught if tree.branches[each[0]].at in points)


class TreeSizes(NamedTuple):
    """How much of a row a layout takes, in the order of packing.Budgets."""

    tokens: int
    targets: int
    segments: int
    sequences: int
    pairs: int
    patches: int


@dataclasses.dataclass(frozen=True, eq=False)
class TreeLayout:
    """A tree laid out at index 0 of a row of t tokens, n targets, q sequences, r pairs.

    ref_weight and pair_weight are those of one question (each kind sums to 1 over a question
    that has it); packing.fill_row divides them by the batch's number of questions.
    """

    id: str
    prompt: Any  # PromptOutline or EncodedPrompt (models/inputs.py); fill_row needs the latter
    question_share: float
    tokens: np.ndarray  # int32 [t]
    parent: np.ndarray  # int32 [t], -1 for the first token
    subtree_end: np.ndarray  # int32 [t]
    positions: np.ndarray  # int32 [3, t]
    image_index: np.ndarray  # int32 [t], -1 for text
    target_pos: np.ndarray  # int32 [n], increasing
    target_parent: np.ndarray  # int32 [n] = parent[target_pos]
    target_segment: np.ndarray  # int32 [n], 0, 0, .., 1, .., non-decreasing
    num_segments: int
    sequences: tuple[tuple[int, ...], ...]  # segment ids of each sequence
    seq_len: np.ndarray  # int32 [q], number of targets of the sequence
    ref_weight: np.ndarray  # float64 [q], 0 for sequences that L_ref does not count
    pair_chosen: np.ndarray  # int32 [r], sequence index
    pair_rejected: np.ndarray  # int32 [r]
    pair_weight: np.ndarray  # float64 [r]

    @property
    def sizes(self) -> TreeSizes:
        return TreeSizes(
            len(self.tokens),
            len(self.target_pos),
            self.num_segments,
            len(self.sequences),
            len(self.pair_weight),
            self.prompt.num_patches,
        )

    @property
    def ref_tokens(self) -> float:
        """Tokens that L_ref counts (weighted, where the question's L_ref is a mean of several)."""
        return float(self.ref_weight @ self.seq_len)


def layout_tree(
    tree: Tree,
    pairs: Sequence[Pair],
    *,
    reference: str = "dataset",
    odds_from: str = "branch",
) -> TreeLayout:
    """Lay out the reference path (as far as needed), and the branches that are taught or named in
    `pairs`.

    reference  "dataset": L_ref on the reference path (RPO eq. 6); "chosen": on prefix + chosen
               branch of each pair with the pair's weight (RPO's code); "none": no L_ref.
    odds_from  "branch": a pair's log-probs are those of the branches' own tokens (RPO eq. 8);
               "divergence": of the tokens after the pair's longest common beginning (RPO's code,
               `get_prefix_removed_logps`). Pairs with an empty side are dropped, with their
               weight; choose_pairs, told the same odds_from, makes none.
    """
    if reference not in REFERENCES or odds_from not in ODDS_FROM:
        raise ValueError(
            f"reference {reference!r} not in {REFERENCES}, or "
            f"odds_from {odds_from!r} not in {ODDS_FROM}"
        )
    branches = tree.branches
    pairs = [pair for pair in pairs if tree.two_sides(pair[0], pair[1], odds_from)]
    compared = {k for chosen, rejected, _ in pairs for k in (chosen, rejected)}
    used = sorted(compared | {k for k, _ in tree.taught})
    count_reference = reference == "dataset" and tree.count_reference

    # The tokens: a trie. Every path ends at the end of a node, which is remembered by its number.
    trie = Trie()
    pieces = len(tree.pieces) if count_reference else max((branches[k].at for k in used), default=0)
    ends = [0]  # ends[i]: the node at whose end the i-th prefix ends
    for piece in tree.pieces[:pieces]:
        ends.append(trie.insert(ends[-1], np.asarray(piece, np.int32)))
    tip = {
        k: trie.insert(ends[branches[k].at], np.asarray(branches[k].tokens, np.int32)) for k in used
    }

    # The sequences: each is the part of a path from the root to a tip that lies behind its first
    # `skip` tokens below the prompt. Pairs share them: a branch in three pairs is one sequence.
    book = _Sequences()
    if count_reference:
        book.add(ends[-1], 0, weight=1.0)
    for k, weight in tree.taught:
        book.add(tip[k], trie.depth_after(ends[branches[k].at]), weight=weight)
    chosen_seq, rejected_seq, weights = [], [], []
    for chosen, rejected, weight in pairs:
        skip = depth = trie.depth_after(ends[branches[chosen].at])
        if odds_from == "divergence":
            skip = depth + common_prefix(branches[chosen].tokens, branches[rejected].tokens)
        if reference == "chosen":
            book.add(tip[chosen], 0, weight=weight)
        chosen_seq.append(book.add(tip[chosen], skip))
        rejected_seq.append(book.add(tip[rejected], skip))
        weights.append(weight)

    # members[node]: the sequences that a node's tokens belong to. `skip` falls on the start of a
    # node always: it is the end of a prefix, or the place where two inserted branches part.
    members: list[list[int]] = [[] for _ in trie.tokens]
    for number, (node, skip) in enumerate(book.index):
        while node and trie.start[node] >= skip:
            members[node].append(number)
            node = trie.parent[node]
    return _assemble(tree, trie, members, book, chosen_seq, rejected_seq, weights)


def visible_pairs(subtree_end: np.ndarray) -> int:
    """Query-key pairs that see each other, for int [..., T]; a padding token sees only itself."""
    ends = np.asarray(subtree_end, np.int64)
    return int((ends - np.arange(ends.shape[-1])).sum())


class _Sequences:
    """The sequences, each once: (tip node, skipped tokens) -> number, with L_ref weights."""

    def __init__(self):
        self.index: dict[tuple[int, int], int] = {}
        self.weight: list[float] = []

    def add(self, tip: int, skip: int, weight: float = 0.0) -> int:
        number = self.index.setdefault((tip, skip), len(self.weight))
        if number == len(self.weight):
            self.weight.append(0.0)
        self.weight[number] += weight
        return number


def _assemble(
    tree: Tree,
    trie: Trie,
    members: list[list[int]],
    book: _Sequences,
    chosen_seq: list[int],
    rejected_seq: list[int],
    weights: list[float],
) -> TreeLayout:
    """Writes the nodes down one after another, and collects what is known of each token."""
    prompt, n = tree.prompt, len(tree.prompt.tokens)
    order, size = trie.order()
    begin, at = {0: 0}, n  # row index of each node's first token; of the next node's
    tokens, parent = [prompt.tokens], [np.arange(-1, n - 1)]
    ends, depth = [np.full(n, n + size[0])], []
    targets, segment_of, segments = [], [], []
    for node in order:
        m, above = len(trie.tokens[node]), trie.parent[node]
        # Inside a node a token's parent stands right before it; that of the first one is the last
        # token of the node above, or of the prompt.
        run = np.arange(at - 1, at + m - 1)
        run[0] = n - 1 if above == 0 else begin[above] + len(trie.tokens[above]) - 1
        begin[node] = at
        tokens.append(trie.tokens[node])
        parent.append(run)
        ends.append(np.full(m, at + size[node]))
        depth.append(np.arange(trie.start[node], trie.start[node] + m))
        if members[node]:
            if not segments or segments[-1] != members[node]:
                segments.append(members[node])
            targets.append(np.arange(at, at + m))
            segment_of.append(np.full(m, len(segments) - 1))
        at += m

    sequences: list[list[int]] = [[] for _ in book.weight]
    for number, segment in enumerate(segments):
        for sequence in segment:
            sequences[sequence].append(number)
    parent = _join(parent)
    target_pos, target_segment = _join(targets), _join(segment_of)
    below = np.tile(prompt.next_position + _join(depth), (3, 1))
    return TreeLayout(
        id=tree.id,
        prompt=prompt,
        question_share=tree.question_share,
        tokens=_join(tokens),
        parent=parent,
        subtree_end=_join(ends),
        positions=np.concatenate([prompt.positions, below], axis=1).astype(np.int32),
        image_index=_join([prompt.image_index, np.full(at - n, -1)]),
        target_pos=target_pos,
        target_parent=parent[target_pos],
        target_segment=target_segment,
        num_segments=len(segments),
        sequences=tuple(map(tuple, sequences)),
        seq_len=_lengths(sequences, target_segment, len(segments)),
        ref_weight=np.asarray(book.weight, np.float64),
        pair_chosen=np.asarray(chosen_seq, np.int32),
        pair_rejected=np.asarray(rejected_seq, np.int32),
        pair_weight=np.asarray(weights, np.float64),
    )


def _lengths(sequences: list[list[int]], target_segment: np.ndarray, segments: int) -> np.ndarray:
    per_segment = np.bincount(target_segment, minlength=segments)
    return np.asarray([per_segment[s].sum() for s in sequences], np.int32)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
