"""A question without its tokens: how long each run of them is, and how the runs hang together.

That is all that packing needs to know before a row is filled: how much of a row the question takes
follows from it for every choice of labels and pairs. `measure` finds what `layout_tree`
(tree_layout.py) would find, without writing anything down, and Batches holds the two against each
other whenever a tree is really laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.pack.tree import Tree
from srpo_jax.pack.tree_layout import ODDS_FROM, REFERENCES, Pair, TreeSizes
from srpo_jax.pack.trie import Trie


class Twig(NamedTuple):
    """A branch that has a label: after how many pieces it leaves, and at whose node's end it ends.
    A tip says which tokens it has: two branches of a point are equal if their tips are.
    """

    at: int
    tip: int
    safe: bool


class PromptSizes(NamedTuple):
    """next_position: of the first token behind it; patch_pairs: see models.flops.Work."""

    tokens: int
    next_position: int
    patches: int
    patch_pairs: int


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Skeleton:
    """The reference path and all branches as a trie: node 0 is its empty root, the end of the
    prompt; a node stands behind its parent.

    parent, length, first: of each node: its number, how many tokens, and the first of them (0 for
    the root). ends[i]: the node at whose end the first i pieces of the reference path end. twigs:
    the branches with a label, copies left out. largest: the highest token id.
    """

    id: str
    prompt: PromptSizes
    parent: list[int]
    length: list[int]
    first: list[int]
    ends: list[int]
    branches: tuple[Twig, ...]
    largest: int = 0
    question_share: float = 1.0
    count_reference: bool = True
    taught: tuple[tuple[int, float], ...] = ()  # see Tree

    @property
    def pieces(self) -> range:
        """As many as the reference path has."""
        return range(len(self.ends) - 1)

    def two_sides(self, chosen: int, rejected: int, odds_from: str) -> bool:
        """See Tree.two_sides."""
        one, other = self.branches[chosen].tip, self.branches[rejected].tip
        if odds_from == "divergence":
            return self._meet(one, other) not in (one, other)
        return one != other

    def starts(self) -> list[int]:
        """For each node: how many tokens below the prompt stand before it."""
        found = [0] * len(self.parent)
        for node in range(1, len(self.parent)):
            above = self.parent[node]
            found[node] = found[above] + self.length[above]
        return found

    def longest(self) -> int:
        """Tokens of the longest path below the prompt: the reference path, or one to a tip."""
        starts = self.starts()
        tips = [self.ends[-1], *(twig.tip for twig in self.branches)]
        return max(starts[node] + self.length[node] for node in tips)

    def _meet(self, one: int, other: int) -> int:
        """The lowest node that both are at or below."""
        while one != other:  # parents have lower numbers
            if one > other:
                one = self.parent[one]
            else:
                other = self.parent[other]
        return one


def skeleton_of(tree: Tree) -> Skeleton:
    """Of a tree whose branches all have a label, and are all different."""
    trie = Trie()
    ends = [0]
    for piece in tree.pieces:
        ends.append(trie.insert(ends[-1], np.asarray(piece, np.int32)))
    tips = [trie.insert(ends[b.at], np.asarray(b.tokens, np.int32)) for b in tree.branches]
    order, _ = trie.order()
    number = {0: 0} | {node: i for i, node in enumerate(order, 1)}
    prompt = tree.prompt
    return Skeleton(
        id=tree.id,
        prompt=PromptSizes(
            len(prompt.tokens), prompt.next_position, prompt.num_patches, prompt.patch_pairs
        ),
        parent=[0, *(number[trie.parent[node]] for node in order)],
        length=[0, *(len(trie.tokens[node]) for node in order)],
        first=[0, *(int(trie.tokens[node][0]) for node in order)],
        ends=[number[node] for node in ends],
        branches=tuple(
            Twig(b.at, number[tip], bool(b.safe)) for b, tip in zip(tree.branches, tips)
        ),
        largest=max(int(trie.tokens[node].max()) for node in order),
        question_share=tree.question_share,
        count_reference=tree.count_reference,
        taught=tree.taught,
    )


class Measure(NamedTuple):
    """Of a layout: see TreeLayout.sizes and ref_tokens, and tree_layout.visible_pairs."""

    sizes: TreeSizes
    ref_tokens: float
    visible: int


def measure(
    skeleton: Skeleton,
    pairs: Sequence[Pair],
    *,
    reference: str = "dataset",
    odds_from: str = "branch",
    count_reference: bool = True,
) -> Measure:
    """What layout_tree would make of the tree with these pairs. count_reference: see Tree."""
    if reference not in REFERENCES or odds_from not in ODDS_FROM:
        raise ValueError(f"reference {reference!r} or odds_from {odds_from!r} is not known")
    branches, ends = skeleton.branches, skeleton.ends
    parent, length, starts = skeleton.parent, skeleton.length, skeleton.starts()
    pairs = [pair for pair in pairs if skeleton.two_sides(pair[0], pair[1], odds_from)]
    used = {k for chosen, rejected, _ in pairs for k in (chosen, rejected)}
    used |= {k for k, _ in skeleton.taught}
    counted = reference == "dataset" and count_reference and skeleton.count_reference
    pieces = len(skeleton.pieces) if counted else max((branches[k].at for k in used), default=0)

    # The sequences, as layout_tree books them: (tip, tokens that are left out of it) -> weight.
    book: dict[tuple[int, int], float] = {}
    if counted:
        book[ends[-1], 0] = 1.0
    for k, weight in skeleton.taught:
        above, tip = ends[branches[k].at], branches[k].tip
        key = (tip, starts[above] + length[above])
        book[key] = book.get(key, 0.0) + weight
    for chosen, rejected, weight in pairs:
        one, other = branches[chosen].tip, branches[rejected].tip
        above = ends[branches[chosen].at]
        if odds_from == "divergence":
            above = skeleton._meet(one, other)
        skip = starts[above] + length[above]
        if reference == "chosen":
            book[one, 0] = book.get((one, 0), 0.0) + weight
        book.setdefault((one, skip), 0.0)
        book.setdefault((other, skip), 0.0)

    kept = [False] * len(parent)
    kept[0] = True
    for node in (*ends[1 : pieces + 1], *(branches[k].tip for k in used)):
        while not kept[node]:
            kept[node] = True
            node = parent[node]
    # members[node]: a bit for each sequence that its tokens belong to.
    members = [0] * len(parent)
    for number, (node, skip) in enumerate(book):
        while node and starts[node] >= skip:
            members[node] |= 1 << number
            node = parent[node]
    nodes = [node for node in range(1, len(parent)) if kept[node]]
    size = [n if keep else 0 for n, keep in zip(length, kept)]
    for node in reversed(nodes):
        size[parent[node]] += size[node]
    before = skeleton.prompt.tokens
    visible = before * (before + size[0]) - before * (before - 1) // 2
    visible += sum(length[n] * size[n] - length[n] * (length[n] - 1) // 2 for n in nodes)
    lengths = [starts[node] + length[node] - skip for node, skip in book]
    sizes = TreeSizes(
        tokens=before + size[0],
        targets=sum(length[node] for node in nodes if members[node]),
        segments=_segments(skeleton, nodes, size, members),
        sequences=len(book),
        pairs=len(pairs),
        patches=skeleton.prompt.patches,
    )
    weights = np.asarray(list(book.values()), np.float64)
    return Measure(sizes, float(weights @ np.asarray(lengths, np.int32)), visible)


def _segments(
    skeleton: Skeleton, nodes: Sequence[int], size: Sequence[int], members: Sequence[int]
) -> int:
    """Runs of targets of the same sequences, in the order in which the nodes are written down."""
    children: list[list[int]] = [[] for _ in skeleton.parent]
    for node in nodes:
        children[skeleton.parent[node]].append(node)
    found, last, stack = 0, 0, [0]
    while stack:
        node = stack.pop()
        if members[node]:
            found += members[node] != last
            last = members[node]
        below = children[node]
        if len(below) > 1:
            below = sorted(below, key=lambda k: (size[k], -skeleton.first[k]))  # see Trie.order
        stack.extend(below)
    return found
