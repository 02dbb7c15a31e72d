"""What packing knows of every tree, in a table: a line for a tree, or for each part of one that is
larger than a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from srpo_jax.models.flops import Work
from srpo_jax.pack.skeleton import Measure, Skeleton
from srpo_jax.pack.tree_layout import TreeLayout, TreeSizes, visible_pairs

# See Item. A million lines are 92 MB.
LINE = np.dtype(
    [
        ("tree", "<i8"),
        ("part", "<i4"),
        ("sizes", "<i8", (len(TreeSizes._fields),)),
        ("question_share", "<f8"),
        ("ref_tokens", "<f8"),
        ("visible", "<i8"),
        ("patch_pairs", "<i8"),
    ]
)
# The lines of one tree, from its skeleton; without the number of the tree.
Lines = Callable[[Skeleton], Sequence[tuple]]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """What a row holds: a whole tree, or one part of a tree that is larger than a row."""

    tree: int
    part: int
    sizes: TreeSizes
    question_share: float
    paired_share: float  # the same, of a question that has a pair; else 0
    ref_tokens: float
    visible: int  # pairs of tokens of which one sees the other
    patch_pairs: int  # pairs of patches of the same picture or tile

    @property
    def work(self) -> Work:
        return Work(
            self.sizes.tokens,
            self.visible,
            self.sizes.targets,
            self.sizes.patches,
            self.patch_pairs,
        )

    def is_of(self, layout: TreeLayout) -> bool:
        """Whether this is what the layout takes of a row."""
        return (
            self.sizes == layout.sizes
            and self.question_share == layout.question_share
            and abs(self.ref_tokens - layout.ref_tokens) <= 1e-9 * layout.ref_tokens
            and self.visible == visible_pairs(layout.subtree_end)
            and self.patch_pairs == layout.prompt.patch_pairs
        )


class Items(Sequence[Item]):
    """The lines of a table as Item. table: LINE [n]. paired: of each tree, by its number, whether
    its question has a pair, in whatever epoch. sizes: int64 [n, 6], see TreeSizes.
    """

    def __init__(self, table: np.ndarray, paired: np.ndarray):
        self.table, self._paired = table, paired

    @property
    def sizes(self) -> np.ndarray:
        return self.table["sizes"]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Item:  # pyright: ignore[reportIncompatibleMethodOverride]
        tree, part, sizes, share, ref_tokens, visible, patch_pairs = self.table[index].tolist()
        paired = share if self._paired[tree] else 0.0
        return Item(
            tree, part, TreeSizes(*sizes.tolist()), share, paired, ref_tokens, visible, patch_pairs
        )


def line(skeleton: Skeleton, found: Measure, part: int = 0, parts: int = 1) -> tuple:
    """The line of a tree, or of one of its parts, without the number of the tree."""
    share = skeleton.question_share / parts
    pairs = skeleton.prompt.patch_pairs
    return (part, tuple(found.sizes), share, found.ref_tokens, found.visible, pairs)


def table_of(skeletons: Iterable[tuple[int, Skeleton]], lines: Lines) -> np.ndarray:
    """LINE [n]: the lines of numbered trees, one tree after the other."""

    def rows() -> Iterator[tuple]:
        for number, skeleton in skeletons:
            for row in lines(skeleton):
                yield (number, *row)

    return np.fromiter(rows(), LINE)
