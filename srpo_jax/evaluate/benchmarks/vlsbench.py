"""VLSBench: the risk is in the picture and the text does not give it away (arXiv 2411.19939).

data.json (or data/data.json): a list of instruction_id, instruction, image_path, category,
sub_category, source; or the Parquet files of its page, with `image`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.records import Record
from srpo_jax.evaluate.benchmarks.base import Benchmark, Row
from srpo_jax.evaluate.benchmarks.counting import attacked, judged, labelled, safe, split
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, rows_below
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import share


class VlsBench(Benchmark):
    """Safe by declining or with a warning, or unsafe."""

    name = "vlsbench"
    title = "VLSBench: risk that only the picture shows"
    source = "huggingface.co/datasets/Foreshhh/vlsbench"
    license = "Apache-2.0"
    layout = "data.json and the pictures that image_path names, or its Parquet files"
    protocol = "VLSBench: three classes with the picture; safe is the first two"
    departures = (
        "all items are judged (the released program keeps the first two)",
        "an answer of the judge that is cut, refused or contradicts itself is ERROR",
        "the rubric is worded by us",
    )
    rubrics = "three_class"
    tested = ("safe",)

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        root = data.parent if data.is_file() else data
        read = Reader(root, pictures, self.license, "VLSBench")
        rows = rows_below(data, "data.json", "data/data.json")
        return collect(rows, lambda row: _item(row, read))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure."""
        found = {
            "safe": share(rows, safe),
            "safe_with_refusal": share(rows, labelled("safe_with_refusal")),
            "safe_with_warning": share(rows, labelled("safe_with_warning")),
            "attack_success": share(rows, attacked),
        }
        for category, own in split(rows, "kind").items():
            found[f"safe/{category}"] = share(own, safe)
        found["judged"] = share(rows, judged)
        return found


def _item(row: Mapping[str, Any], read: Reader) -> Record:
    cells = fields.pictures(row, "image", "image_path")
    if not cells:
        raise ValueError("it has neither image nor image_path")
    found = [read.find(c, "data", "imgs") if isinstance(c, str) else c for c in cells]
    return read.record(
        f"vlsbench-{row.get('instruction_id')}",
        fields.text(row, "instruction"),
        found,
        risky=True,
        kind=fields.text(row, "category"),
        sub_category=row.get("sub_category"),
    )
