"""Batch k as a function of k alone: no iterator state, so the data position is the train step.

Epoch e has a packing plan, a pure function of (sizes, budgets, seed, e), that holds every tree
once. The plans of epochs 0, 1, 2, ... put one after another are an endless stream, and batch k is
so many rows, or questions, of it (streams.py): the last of an epoch share a batch with the first of
the next. Each process takes the rows that lie on its devices (srpo_jax/distributed/sharding.py), so
any number of processes and threads, and any start step, give the same global batches bit for bit.

The loss weights are divided by the number of questions (of those with a pair; or of reference
tokens) of the whole batch, which the plan knows without reading the other processes' pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.inputs import no_patches
from srpo_jax.pack.byte_cache import CACHE_BYTES, ByteCache
from srpo_jax.pack.examples import Examples, ReadyTrees
from srpo_jax.pack.items import Item, Items, Lines, line
from srpo_jax.pack.packing import (
    REF_REDUCTIONS,
    Budgets,
    TooLong,
    fill_row,
    lay_out_within,
    part_groups,
    plan_rows,
    stack_rows,
)
from srpo_jax.pack.skeleton import Measure, Skeleton, measure
from srpo_jax.pack.streams import EpochPlan, QuestionStream, Rows, RowStream
from srpo_jax.pack.tree_layout import TreeLayout, TreeSizes, choose_pairs, taught_at, teach

PLAN = 1  # counts up when the same sizes, seed and epoch get other pairs or rows
KEPT_PLANS = 3  # a batch near the end of an epoch needs two; prefetching may look one ahead


class Batches:
    """[k] -> batch k as srpo_jax.pack.packing describes it, with this process's rows only.

    examples: Examples, or a list of encoded trees with a `processor`.
    budgets:  sizes of a row; None: fitted to the trees (`row_tokens` 0: as long as the largest).
              Fitted to all pairs of every tree, so they hold whatever an epoch draws.
    pairing, max_pairs, branch_points: which pairs, see srpo_jax.pack.tree_layout.choose_pairs.
    reference, odds_from: see srpo_jax.pack.tree_layout.layout_tree.
    ref_reduction: "question" or "token", see srpo_jax.pack.packing.fill_row.
    exp_denominator: L_exp is the mean over the questions that have a pair ("paired") or over all
              questions of the batch ("all").
    compare: whether pairs are compared at all; if not, no branch is laid out for that.
    branch_coef: what safe branches count in L_ref, see srpo_jax.pack.tree_layout.teach.
    drop_long: whether trees of which one branch point is larger than a row are left out and named;
              else they are refused.
    questions: exactly so many in every batch of the first `steps`, in as many rows as the fullest
               of them needs, a multiple of rows_per_batch. 0: as many as rows_per_batch rows hold.
    rows_here: number of rows -> which of each batch are wanted, in ascending order; default: the
               part of `process_index` of `process_count` equal ones.

    Trees that give no loss (no pair, and no L_ref on the reference path) are named on stderr and
    left out. Raises UserError when none is left, when rows do not divide by processes, and for a
    tree of which one branch point is larger than a row.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        rows_per_batch: int,
        seed: int,
        budgets: Budgets | None = None,
        row_tokens: int = 0,
        pairing: str = "all",
        max_pairs: int = 8,
        branch_points: str = "all",
        reference: str = "dataset",
        odds_from: str = "branch",
        ref_reduction: str = "question",
        exp_denominator: str = "paired",
        compare: bool = True,
        branch_coef: float = 0.0,
        process_index: int = 0,
        process_count: int = 1,
        rows_here: Callable[[int], Sequence[int]] | None = None,
        questions: int = 0,
        steps: int = 0,
        cache_bytes: int = CACHE_BYTES,
        drop_long: bool = False,
    ):
        if rows_per_batch < 1 or rows_per_batch % process_count:
            raise UserError(
                f"pack.rows is {rows_per_batch}: it must be a positive multiple of "
                f"the number of processes, {process_count}"
            )
        if ref_reduction not in REF_REDUCTIONS:
            raise ValueError(f"ref_reduction {ref_reduction!r} not in {REF_REDUCTIONS}")
        self.examples = examples if isinstance(examples, Examples) else ReadyTrees(examples)
        self.seed = seed
        self._pairs = {
            "pairing": pairing,
            "max_pairs": max_pairs,
            "branch_points": branch_points,
            "odds_from": odds_from,
            "seed": seed,
        }
        self._layout: dict[str, Any] = {"reference": reference, "odds_from": odds_from}
        self._per_token = ref_reduction == "token"
        self._of_all = exp_denominator == "all"
        self._compare, self._branch_coef = compare, branch_coef
        self._drops = drop_long
        self._redraws = compare and pairing != "all"  # the pairs differ between epochs
        self._cache = ByteCache(cache_bytes)
        self._lock = threading.RLock()
        self._plans: dict[int, EpochPlan] = {}
        self._items: Items | None = None  # when the pairs never change

        # Per tree, the most that any epoch can need: leaving pairs out only makes it smaller.
        table = self.examples.table(["whole", self._about()], self._lines(None, "all"))
        if not np.array_equal(table["tree"], np.arange(len(self.examples))):
            raise UserError(f"{self.examples.kept_at(0)} and their like are not whole: remove them")
        sizes = table["sizes"]
        pairs = sizes[:, TreeSizes._fields.index("pairs")]
        self.pairs = int(pairs.sum())  # of all trees, before any is drawn
        self.with_pair = int(np.count_nonzero(pairs))  # questions
        self._paired = pairs > 0
        used = sizes[:, TreeSizes._fields.index("sequences")] > 0
        self._report_left_out(np.flatnonzero(~used), len(table))
        if budgets is None:
            # A picture is cut nowhere, so a row takes whole units (merged patches, or tiles).
            budgets = Budgets.fit(
                sizes[used],
                row_tokens=row_tokens,
                patch_multiple=examples.processor.config.vision.patch_unit,
            )
            if not row_tokens:
                self._report_long(sizes[:, 0] * used)
        self.budgets = budgets
        if (sizes[used] > budgets.as_sizes()).any() and (drop_long or not self._redraws):
            table = self._parts(table, used)
        # In ascending order, as the table is.
        self.used = np.unique(table["tree"][used[table["tree"]]]).tolist()
        if not self._redraws:
            self._items = Items(table[used[table["tree"]]], self._paired)
        if questions:
            self.stream: RowStream | QuestionStream = QuestionStream(
                self.plan,
                questions,
                self.budgets,
                seed=seed,
                steps=max(steps, 1),
                multiple=rows_per_batch,
            )
        else:
            self.stream = RowStream(self.plan, rows_per_batch, self._digest_of_plan(sizes))
        self.rows_per_batch = rows = self.stream.rows_per_batch
        local = rows // process_count
        self._local = (
            rows_here(rows)
            if rows_here
            else range(process_index * local, (process_index + 1) * local)
        )

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of this process's rows of batch `step`, first axis R / process_count."""
        rows = self.stream.rows(step)
        return self._filled(rows, rows)

    def whole_epoch(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches of every tree once, for a measure over all: their weights are divided by the
        numbers of all of them, so that sums over the batches are the means. The last batch has
        rows of padding where there are no more trees.
        """
        plan, size = self.plan(0), self.rows_per_batch
        rows: Rows = [(plan, row) for row in plan.rows]
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            yield self._filled(some + [(plan, ())] * (size - len(some)), rows)

    def _filled(
        self,
        rows: Rows,
        counted: Rows,
    ) -> dict[str, np.ndarray]:
        """This process's part of a batch of `rows`, with weights divided by the numbers of all
        `counted` rows."""
        everything = [plan.items[i] for plan, row in counted for i in row]
        questions = math.fsum(item.question_share for item in everything)
        ref_tokens = math.fsum(item.ref_tokens for item in everything) or 1.0
        paired = math.fsum(item.paired_share for item in everything) or 1.0
        blank = no_patches(self.examples.processor.config)
        filled = []
        for plan, row in (rows[i] for i in self._local):
            items = [plan.items[i] for i in row]
            layouts = [self._with_pixels(item, plan.epoch) for item in items]
            filled.append(
                fill_row(
                    layouts,
                    self.budgets,
                    questions=questions,
                    ref_tokens=ref_tokens if self._per_token else None,
                    paired=questions if self._of_all else paired,
                    no_patches=blank,
                )
            )
        return stack_rows(filled)

    def question_ids(self, step: int) -> list[list[str]]:
        """The tree ids of every row of the whole batch `step`, for messages and reports."""
        return [
            [self.examples.outline(plan.items[i].tree).id for i in row]
            for plan, row in self.stream.rows(step)
        ]

    def plan(self, epoch: int) -> EpochPlan:
        """The packing plan of an epoch."""
        with self._lock:
            if epoch not in self._plans:
                items = self._items_of(epoch)
                rows = plan_rows(items.sizes, self.budgets, seed=self.seed, epoch=epoch)
                self._plans[epoch] = EpochPlan(epoch, items, tuple(map(tuple, rows)))
                while len(self._plans) > KEPT_PLANS:  # the oldest made, never the new one
                    del self._plans[next(iter(self._plans))]
            return self._plans[epoch]

    def _digest_of_plan(self, sizes: np.ndarray) -> str:
        """16 hex digits over all that decides how many rows an epoch takes. sizes: of the trees."""
        decides = [
            PLAN,
            self._pairs,
            self._layout,
            self._compare,
            self._branch_coef,
            self.budgets.as_sizes(),
            self.used,
        ]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
        digest.update(np.asarray(sizes, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def _items_of(self, epoch: int) -> Items:
        if self._items is not None:
            return self._items
        table = self.examples.table(epoch, self._lines(self.budgets, epoch=epoch), keep=False)
        return Items(table[np.isin(table["tree"], self.used)], self._paired)

    def _about(self) -> list[Any]:
        """All that decides _lines with every pair, but for the budgets."""
        points = self._pairs["branch_points"]
        taught = [self._branch_coef] if self._branch_coef else []
        return [sorted(self._layout.items()), points, self._compare, *taught]

    def _lines(self, budgets: Budgets | None, pairing: str = "", epoch: int = 0) -> Lines:
        """See items.table_of: a line for the whole tree, where there are budgets for each part, and
        none of what is left out."""
        options = {**self._pairs, **({"pairing": pairing} if pairing else {}), "epoch": epoch}

        def lines(tree: Skeleton) -> list[tuple]:
            tree = teach(tree, self._branch_coef)
            pairs = choose_pairs(tree, **options) if self._compare else []

            def part(points: Sequence[int], counted: bool) -> Measure:
                chosen = [pair for pair in pairs if tree.branches[pair[0]].at in points]
                own = dataclasses.replace(tree, taught=taught_at(tree, points))
                return measure(own, chosen, count_reference=counted, **self._layout)

            def sizes(points: Sequence[int], counted: bool) -> TreeSizes:
                return part(points, counted).sizes

            whole = measure(tree, pairs, **self._layout)
            if budgets is None or budgets.holds(whole.sizes):
                return [line(tree, whole)]
            reference = self._layout["reference"]
            try:
                groups = part_groups(tree, pairs, budgets, sizes, reference=reference) or []
            except TooLong:
                if not self._drops:
                    raise
                return []
            found = enumerate(part(*group) for group in groups)
            return [line(tree, each, number, len(groups)) for number, each in found]

        return lines

    def _parts(self, table: np.ndarray, used: np.ndarray) -> np.ndarray:
        """The table with parts in place of the trees that are larger than a row, without those that
        cannot be cut, which are named.
        """
        lines = self._lines(self.budgets, "all")
        about = ["parts", self._about(), dataclasses.astuple(self.budgets), self._drops]
        found = self.examples.table(about, lines)
        dropped = np.setdiff1d(np.flatnonzero(used), found["tree"])
        if len(dropped) == used.sum():
            raise UserError(
                f"all {len(dropped)} trees are longer than a row of {self.budgets.tokens} tokens: "
                "raise pack.row_tokens"
            )
        self._tell_left_out(dropped, len(table), "longer than a row (pack.too_long=drop)")
        return found

    def _layouts(self, tree: int, epoch: int) -> list[TreeLayout]:
        """The layouts of a tree in an epoch: one, or one a part. A pure function, cached.

        Their prompts are outlines: pictures are decoded for the rows of this process alone.
        """
        epoch = epoch if self._redraws else 0

        def make():
            whole = teach(self.examples.outline(tree), self._branch_coef)
            pairs = choose_pairs(whole, epoch=epoch, **self._pairs) if self._compare else []
            return lay_out_within(whole, pairs, self.budgets, **self._layout)

        return self._cache.get((tree, epoch), make, _bytes)

    def _with_pixels(self, item: Item, epoch: int) -> TreeLayout:
        layouts = self._layouts(item.tree, epoch)
        if item.part >= len(layouts) or not item.is_of(layouts[item.part]):
            where = self.examples.kept_at(item.tree)
            name = layouts[0].id
            if not where:
                raise AssertionError(f"tree {name!r} was measured as {item}")
            raise UserError(f"{where} says of tree {name!r} what is not true: remove these files")
        return dataclasses.replace(layouts[item.part], prompt=self.examples.prompt(item.tree))

    def _report_left_out(self, left_out: np.ndarray, total: int) -> None:
        why = "no pair of a safe and an unsafe branch, and no reference path to learn"
        if len(left_out) == total:
            raise UserError(
                f"none of {total} trees can be trained on: {why}; look at the table of `srpo "
                "judge`, or sample more (`srpo explore --more`)"
            )
        self._tell_left_out(left_out, total, why)

    def _tell_left_out(self, left_out: np.ndarray, total: int, why: str) -> None:
        if len(left_out):
            names = ", ".join(repr(self.examples.outline(int(i)).id) for i in left_out[:5])
            more = ", ..." if len(left_out) > 5 else ""
            print(
                f"left out {len(left_out)} of {total} trees: {why} ({names}{more})",
                file=sys.stderr,
            )

    def _report_long(self, tokens: np.ndarray) -> None:
        """Says when one tree makes every row more than twice as long as the others need."""
        if len(tokens) < 2:
            return
        *_, second, longest = np.sort(tokens).tolist()
        if longest > 2 * second > 0:
            name = self.examples.outline(int(tokens.argmax())).id
            print(
                f"warning: tree {name!r} alone makes the rows {longest} tokens long, the others "
                f"need {second}: set pack.row_tokens, and pack.too_long=drop to leave it out",
                file=sys.stderr,
            )


def _bytes(layouts: list[TreeLayout]) -> int:
    return 64 * sum(len(each.tokens) for each in layouts) + 4096


def make_loader(
    examples: Examples | Batches,
    *,
    start_step: int = 0,
    num_steps: int,
    threads: int = 2,
    **options: Any,
) -> Generator[tuple[int, dict[str, np.ndarray]]]:
    """Iterate over (k, batch k) for k = start_step .. num_steps - 1, made ahead by grain threads.

    num_steps is where the run ends, not a count from start_step. `options` are those of Batches;
    with a Batches there are none. threads 0: made when asked for. Close the iterator (or use it
    up) to end the threads.
    """
    if not isinstance(examples, Batches):
        examples = Batches(examples, **options)
    elif options:
        raise ValueError(f"a Batches has its options already: {sorted(options)}")
    return _iterate(examples, start_step, num_steps, threads)


def _iterate(batches: Batches, start: int, stop: int, threads: int) -> Generator:
    if start >= stop:
        return
    steps = grain.MapDataset.range(start, stop).map(lambda k: (int(k), batches[int(k)]))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(steps.to_iter_dataset(ahead))
    try:
        yield from iterator
    finally:
        iterator.close()
