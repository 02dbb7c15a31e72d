"""Batches by questions: exactly so many a step, whatever they weigh."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.models.hf.processor import Processor
from srpo_jax.pack.batches import Batches
from srpo_jax.pack.examples import Examples
from tests.pack.test_batches import assert_same, tree_record
from tests.support.tiny import tiny_qwen2_5_vl

TREES, N, STEPS = 14, 4, 12


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    processor = Processor.from_dir(tiny_qwen2_5_vl(tmp_path_factory.mktemp("tiny")))
    return Examples([tree_record(i) for i in range(TREES)], processor)


def by_questions(examples, **options) -> Batches:
    return Batches(
        examples, **{"rows_per_batch": 2, "questions": N, "steps": STEPS, "seed": 3, **options}
    )


# Of 110 tokens, rows are so short that trees are split into parts.
@pytest.mark.parametrize("options", [{}, {"row_tokens": 110}, {"pairing": "one"}])
def test_every_step_has_exactly_n_questions(examples, options):
    """All parts of each, every question once an epoch, in rows that the fullest step needs."""
    batches = by_questions(examples, **options)
    seen: list[tuple[int, int]] = []
    used = []
    for step in range(STEPS):
        rows = batches.stream.rows(step)
        assert len(rows) == batches.rows_per_batch
        items = [plan.items[i] for plan, row in rows for i in row]
        assert abs(sum(item.question_share for item in items) - N) < 1e-9
        asked = {(plan.epoch, plan.items[i].tree) for plan, row in rows for i in row}
        assert len(asked) == N
        seen += asked
        used.append(sum(bool(row) for _, row in rows))
        batch = batches[step]
        assert len(batch["tokens"]) == batches.rows_per_batch
        assert abs(batch["ref_weight"].sum() - 1) < 1e-5  # a mean over N questions
    assert batches.rows_per_batch % 2 == 0 and max(used) > batches.rows_per_batch - 2
    assert len(set(seen)) == STEPS * N, "once an epoch"
    assert {epoch for epoch, _ in seen} == set(range(-(-STEPS * N // TREES)))


def test_methods_see_the_same_questions(examples):
    """Whatever is compared, or not, and however long the rows: the order is drawn by seed alone."""
    runs = [
        by_questions(examples, **options)
        for options in ({}, {"compare": False}, {"row_tokens": 200}, {"branch_points": "first"})
    ]
    for step in range(STEPS):
        found = [{name for row in run.question_ids(step) for name in row} for run in runs]
        assert all(ids == found[0] for ids in found)
    other = by_questions(examples, seed=4)
    assert any(other.question_ids(step) != runs[0].question_ids(step) for step in range(STEPS))


def test_processes_and_starts_give_the_same_batches(examples):
    """Each of two processes has its half, and nothing depends on the steps before."""
    whole = by_questions(examples)
    parts = [by_questions(examples, process_index=p, process_count=2) for p in range(2)]
    for step in (7, 2):
        joined = {
            name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]
        }
        assert_same(joined, whole[step])
