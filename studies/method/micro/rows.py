"""Lessons as the rows of batches, with the paths that the policy computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from srpo_jax.pack.packing import Budgets, fill_row, stack_rows
from srpo_jax.pack.tree_layout import TreeLayout
from studies.method.micro import policy, world
from studies.method.micro.data import NO_PATCHES
from studies.method.micro.lessons import Lesson
from studies.method.micro.recipes import Recipe

QUESTIONS_A_STEP = 8


def batches(
    made: Sequence[Lesson], recipe: Recipe, risky: Sequence[bool], seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Exactly eight questions a step, in an order drawn for each epoch; endless."""
    layouts = [lesson.layouts for lesson in made]
    size = Size.of(layouts)
    found = [paths_of(lesson) for lesson in layouts]
    most = max(len(lesson.kept) for lesson in made)
    weight = recipe.kl / QUESTIONS_A_STEP
    kept = [kept_paths(lesson, most, weight) if most else {} for lesson in made]
    paired = np.array([any(len(layout.pair_weight) for layout in lesson) for lesson in layouts])
    scale = np.ones(len(made))
    if recipe.balanced and paired.any():
        for side in (True, False):
            here = paired & (np.array(risky) == side)
            scale[here] = paired.sum() / 2 / max(here.sum(), 1)
    order: list[int] = []
    rng = np.random.default_rng([seed, 3])
    while True:
        while len(order) < QUESTIONS_A_STEP:
            order += rng.permutation(len(made)).tolist()
        now, order = order[:QUESTIONS_A_STEP], order[QUESTIONS_A_STEP:]
        count = float(paired[now].sum()) or 1.0
        yield stack_rows(
            [
                size.row(layouts[n], found[n], questions=QUESTIONS_A_STEP, paired=count / scale[n])
                | kept[n]
                for n in now
            ]
        )


@dataclasses.dataclass(frozen=True)
class Size:
    """Of rows that hold a lesson each."""

    budgets: Budgets
    paths: int

    @classmethod
    def of(cls, made: Sequence[Sequence[TreeLayout]]) -> Size:
        """Rounded up, so that few programs are compiled: paths to eights, the rest to powers of
        two."""
        sums = np.array([np.sum([layout.sizes for layout in lesson], 0) for lesson in made]).max(0)
        most = max(len(paths_of(lesson)[0]) for lesson in made)
        tokens, targets, segments, sequences, pairs = (
            max(32, 1 << int(np.ceil(np.log2(max(size, 1))))) for size in sums[:5]
        )
        budgets = Budgets(tokens, min(tokens, targets), segments, sequences, pairs, 1)
        return cls(budgets, -(-most // 8) * 8)

    def row(
        self,
        lesson: Sequence[TreeLayout],
        found: tuple[np.ndarray, np.ndarray],
        *,
        questions: float,
        paired: float,
    ) -> dict[str, np.ndarray]:
        """The project's row, with the paths that it is made of and where its targets lie on them.
        found: what paths_of gives."""
        made = fill_row(
            lesson, self.budgets, questions=questions, paired=paired, no_patches=NO_PATCHES
        )
        paths, on_path = found
        made["paths"] = np.zeros((self.paths, policy.DEPTH), np.int32)
        made["paths"][: len(paths)] = paths
        made["on_path"] = np.zeros(self.budgets.targets, np.int32)
        made["on_path"][: len(on_path)] = on_path
        return made


def paths_of(lesson: Sequence[TreeLayout]) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [paths, DEPTH]: from the prompt to every leaf of a row; int32 [targets]: where each
    target stands among their tokens, put one after another).
    """
    paths, where = [], []
    for layout in lesson:
        on_path: dict[int, int] = {}
        for leaf in sorted(set(range(len(layout.tokens))) - set(layout.parent.tolist())):
            path, node = [], leaf
            while node >= 0:
                path.append(node)
                node = int(layout.parent[node])
            path.reverse()
            row = np.zeros(policy.DEPTH, np.int32)
            row[: len(path)] = layout.tokens[path]
            start = len(paths) * policy.DEPTH
            on_path |= {node: start + depth for depth, node in enumerate(path)}
            paths.append(row)
        where += [on_path[node] for node in layout.target_pos.tolist()]
    return np.stack(paths), np.array(where, np.int32)


def kept_paths(lesson: Lesson, most: int, weight: float) -> dict[str, np.ndarray]:
    """The own branches that a lesson keeps likely, in `most` rows: {"kept" int32 [most, DEPTH]:
    from the prompt on; "kept_logp" float32: what the tokens were drawn with; "kept_weight" float32:
    that of each own token, `weight` in all, alike for branches, and within one for its tokens}.
    """
    shape = (most, policy.DEPTH)
    made = {"kept": np.zeros(shape, np.int32)}
    made |= {name: np.zeros(shape, np.float32) for name in ("kept_logp", "kept_weight")}
    for row, own in enumerate(lesson.kept):
        made["kept"][row, : world.PROMPT] = lesson.layouts[0].tokens[: world.PROMPT]
        made["kept"][row, world.PROMPT :] = own.path
        made["kept_logp"][row, world.PROMPT :] = own.logps
        begin = world.BORDERS[own.at]
        each = weight / len(lesson.kept) / (world.LENGTH - begin)
        made["kept_weight"][row, world.PROMPT + begin :] = each
    return made
