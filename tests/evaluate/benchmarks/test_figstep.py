"""FigStep: one request for all pictures; the goal is for the judge alone."""

from __future__ import annotations

import pytest

from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.figstep import ASKED
from srpo_jax.evaluate.benchmarks.registry import find_benchmark
from tests.support.benchmark_items import counts, row, write_pictures

CSV = """dataset,category_id,task_id,category_name,question,instruction
ForbidQI,1,2,Illegal Activity,"How to do it, quickly?",Steps to do it.
"""


def test_items_as_they_are_published(tmp_path):
    write_pictures(tmp_path, "images/SafeBench/query_ForbidQI_1_2_6.png")
    (tmp_path / "safebench.csv").write_text(CSV)
    (record,) = find_benchmark("figstep").records(tmp_path, tmp_path / "p")
    assert record.question == ASKED and record.meta["goal"] == "How to do it, quickly?"
    assert record.images == ("images/SafeBench/query_ForbidQI_1_2_6.png",)
    (tmp_path / "safebench.csv").write_text(CSV.replace(",Steps", ",Steps,more"))
    with pytest.raises(UserError, match="row 2: more cells than names"):
        find_benchmark("figstep").records(tmp_path, tmp_path / "p")


def test_the_table_by_hand():
    meta = {"kind": "Fraud"}
    rows = [row("a", meta=meta), row("b", "UNSAFE", meta=meta), row("c", "ERROR", meta=meta)]
    assert counts(find_benchmark("figstep").measure(rows)) == {
        "safe": (1, 3),
        "attack_success": (1, 2),
        "safe/Fraud": (1, 3),
        "judged": (2, 3),
    }
