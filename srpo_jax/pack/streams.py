"""Which rows make batch k: the plans of all epochs, one after another, cut into batches.

    RowStream       by rows: batch k is rows [k R, (k + 1) R) of the plans. Rows are full, so the
                    number of questions differs between batches
    QuestionStream  by questions: batch k is questions [k N, (k + 1) N) of an order drawn for each
                    epoch, packed by themselves into as many rows as the fullest batch needs

Either is a pure function of the plans of the epochs, so the data position is the step.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from srpo_jax.pack.items import Items
from srpo_jax.pack.packing import Budgets, best_fit


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """rows[r] lists the items of row r of this epoch."""

    epoch: int
    items: Items
    rows: tuple[tuple[int, ...], ...]


Rows = list[tuple[EpochPlan, tuple[int, ...]]]  # (the plan of its epoch, indices of its items)


class RowStream:
    """plan: of an epoch. rows_per_batch: R. digest: of all that decides how many rows an epoch
    takes, for place() and start_from()."""

    def __init__(self, plan: Callable[[int], EpochPlan], rows_per_batch: int, digest: str):
        self._plan, self.rows_per_batch, self._digest = plan, rows_per_batch, digest
        self._lock = threading.RLock()
        self._first_row = [0]  # of the epochs from _first_epoch on, as far as they were planned
        self._first_epoch = 0

    def rows(self, step: int) -> Rows:
        """The rows of the whole batch `step`."""
        found = []
        for row in range(step * self.rows_per_batch, (step + 1) * self.rows_per_batch):
            epoch, index = self._locate(row)
            plan = self._plan(epoch)
            found.append((plan, plan.rows[index]))
        return found

    def epoch(self, step: int) -> int:
        """The epoch that the first row of batch `step` belongs to."""
        return self._locate(step * self.rows_per_batch)[0]

    def place(self, step: int) -> dict[str, Any]:
        """Where the first `step` batches end, as JSON for start_from: how many rows the epochs
        before that took. The epoch that a row belongs to depends on it, and to plan all of them
        again takes the longer the later a run goes on.
        """
        row = max(0, step * self.rows_per_batch - 1)
        epoch, index = self._locate(row)
        return {"plan": self._digest, "epoch": epoch, "first_row": row - index}

    def start_from(self, place: Any) -> None:
        """Takes over what place() gave for the same data and settings; anything else is left alone,
        and the epochs are planned from the first one on.
        """
        if isinstance(place, dict) and place.get("plan") == self._digest:
            with self._lock:
                self._first_epoch, self._first_row = place["epoch"], [place["first_row"]]

    def _locate(self, row: int) -> tuple[int, int]:
        """(epoch, row of its plan) of a row of the endless stream."""
        with self._lock:
            if row < self._first_row[0]:  # before the place that this run went on from
                self._first_epoch, self._first_row = 0, [0]
            while row >= self._first_row[-1]:  # its last entry is where the next epoch begins
                rows = len(self._plan(self._first_epoch + len(self._first_row) - 1).rows)
                self._first_row.append(self._first_row[-1] + rows)
            known = bisect.bisect_right(self._first_row, row) - 1
            return self._first_epoch + known, row - self._first_row[known]


class QuestionStream:
    """plan: of an epoch. questions: N, of every batch. steps: how many batches there will be; all
    of them are packed once, to find the fullest. multiple: the number of rows is one of it.

    A batch that begins in one epoch and ends in the next keeps their questions in rows of their
    own; the rows that it does not need are padding.
    """

    def __init__(
        self,
        plan: Callable[[int], EpochPlan],
        questions: int,
        budgets: Budgets,
        *,
        seed: int,
        steps: int,
        multiple: int,
    ):
        self._plan, self._questions, self._seed = plan, questions, seed
        self._limit = np.asarray(budgets.as_sizes(), np.int64)
        self._per_epoch = len(np.unique(plan(0).items.table["tree"]))
        self._order = functools.lru_cache(maxsize=3)(self._order_of)
        fullest = max(len(self._packed(step)) for step in range(steps))
        self.rows_per_batch = -(-fullest // multiple) * multiple

    def rows(self, step: int) -> Rows:
        """The rows of the whole batch `step`, the last ones perhaps empty. Errors: ValueError for a
        step past those that it was made for, if it needs more rows."""
        found = self._packed(step)
        if len(found) > self.rows_per_batch:
            raise ValueError(f"step {step} needs {len(found)} rows: it was not planned for")
        return found + [(found[-1][0], ())] * (self.rows_per_batch - len(found))

    def place(self, step: int) -> dict[str, Any]:
        """Nothing: where a batch begins follows from its number."""
        return {}

    def start_from(self, place: Any) -> None:
        """See place."""

    def _order_of(self, epoch: int) -> np.ndarray:
        """int [2, questions]: where the items of each question begin and end, in the epoch's order.
        The parts of a tree stand together."""
        _, starts = np.unique(self._plan(epoch).items.table["tree"], return_index=True)
        ends = np.append(starts[1:], len(self._plan(epoch).items))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(starts))
        return np.stack([starts[order], ends[order]])

    def _packed(self, step: int) -> Rows:
        first, end = step * self._questions, (step + 1) * self._questions
        found: Rows = []
        while first < end:
            epoch, begin = divmod(first, self._per_epoch)
            count = min(end - first, self._per_epoch - begin)
            plan = self._plan(epoch)
            starts, ends = self._order(epoch)[:, begin : begin + count]
            chosen = np.concatenate([np.arange(*part) for part in zip(starts, ends)])
            packed = best_fit(chosen, plan.items.sizes, self._limit)
            found += [(plan, tuple(row)) for row in packed]
            first += count
        return found
