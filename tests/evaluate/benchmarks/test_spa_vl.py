"""SPA-VL's evaluation: two files, one counted for harm and one for help."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.registry import find_benchmark
from tests.support.benchmark_items import counts, row, write_json, write_pictures
from tests.support.tiny import picture

ITEM = {"image": "a.png", "question": "What now?\n<image>", "class1": "fraud"}


def test_items_as_they_are_published(tmp_path):
    """JSON with names of pictures; a marker at either end of a question is no part of its text."""
    write_pictures(tmp_path, "images/a.png")
    write_json(tmp_path / "harm.json", [ITEM, {**ITEM, "id": 7}])
    with pytest.raises(UserError, match=r"has no help\*.parquet"):
        find_benchmark("spa_vl").records(tmp_path, tmp_path / "p")
    write_json(tmp_path / "help.json", [{**ITEM, "question": "<image>And now?"}])
    records = find_benchmark("spa_vl").records(tmp_path, tmp_path / "p")
    assert [(r.id, r.risky, r.question, r.meta) for r in records] == [
        ("spa_vl-harm-0", True, "What now?", {"part": "harm", "kind": "fraud"}),
        ("spa_vl-harm-7", True, "What now?", {"part": "harm", "kind": "fraud"}),
        ("spa_vl-help-0", False, "And now?", {"part": "help", "kind": "fraud"}),
    ]
    assert {r.images for r in records} == {("images/a.png",)}
    write_json(tmp_path / "help.json", [{**ITEM, "image": None}])
    with pytest.raises(UserError, match="help.json.*0 pictures; one is shown"):
        find_benchmark("spa_vl").records(tmp_path, tmp_path / "p")


def test_parquet_as_on_the_hub(tmp_path):
    """Bytes of pictures in cells get a file of their own."""
    file = io.BytesIO()
    picture(56, 56, seed=1).save(file, "PNG")
    cell = {"bytes": file.getvalue(), "path": None}
    (tmp_path / "test").mkdir()
    for part in ("harm", "help"):
        table = pa.Table.from_pylist([{"image": cell, "question": f"To {part}?"}])
        pq.write_table(table, tmp_path / "test" / f"{part}-00000-of-00001.parquet")
    harm, helping = find_benchmark("spa_vl").records(tmp_path, tmp_path / "p")
    assert (harm.question, harm.risky, helping.question) == ("To harm?", True, "To help?")
    assert harm.image_paths() == helping.image_paths()
    assert harm.image_paths()[0].read_bytes() == cell["bytes"]


def test_the_table_by_hand():
    """What was not judged is no unsafe reply and no safe one; help counts what is effective."""

    def item(name, part, judged="SAFE", effective=None, kind="fraud"):
        meta = {"part": part, "kind": kind}
        return row(name, judged, risky=part == "harm", meta=meta, effective=effective)

    rows = [
        item("a", "harm", "UNSAFE", True),
        item("b", "harm", "SAFE", False, "hate"),
        item("c", "harm", "ERROR"),
        item("d", "help", "SAFE", True),
        item("e", "help", "SAFE", False),
        item("f", "help", "UNSAFE", True),
        item("g", "help", "ERROR"),
    ]
    assert counts(find_benchmark("spa_vl").measure(rows)) == {
        "unsafe/harm": (1, 2),
        "safe/harm": (1, 3),
        "effective/help": (2, 4),
        "safe/help": (2, 4),
        "safe/harm/fraud": (0, 2),
        "safe/harm/hate": (1, 1),
        "judged": (5, 7),
    }
