"""SPA-VL's evaluation: HarmEval and HelpEval, its two test files (arXiv 2406.12030).

Parquet as on the Hugging Face Hub (test/harm-*.parquet, test/help-*.parquet) or JSON (harm.json,
help.json): image, question, and as far as there id, class1 to class3. Reference replies are not
shown to the judge. The pairs for training are another reader's: data_pipelines/formats/spa_vl.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.rows import ENDINGS, read_rows
from srpo_jax.data_pipelines.exchange.rows import Row as FileRow
from srpo_jax.data_pipelines.records import IMAGE_MARKER, Record
from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.base import Benchmark, Row
from srpo_jax.evaluate.benchmarks.counting import attacked, effective, judged, safe, split
from srpo_jax.evaluate.benchmarks.reading import Reader, collect
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import share

PARTS = ("harm", "help")  # what the names of the files begin with


class SpaVlEval(Benchmark):
    """The unsafe rate on HarmEval, the effective rate on HelpEval."""

    name = "spa_vl"
    title = "SPA-VL: HarmEval and HelpEval"
    source = "huggingface.co/datasets/sqrti/SPA-VL (its test split)"
    license = "CC BY 4.0"
    layout = "harm*.parquet and help*.parquet (or .json), there or in test/, and their pictures"
    protocol = "SPA-VL: unsafe or not on HarmEval; how helpful on HelpEval"
    departures = (
        "help is the share of replies that are judged effective; there a model's replies are "
        "compared with another model's, as a win rate",
        "rubrics worded by us; the judge sees picture and question, and is yours (theirs was "
        "GPT-4V)",
        "the released files were not seen by us: the fields are those that its loaders read",
    )
    rubrics = "reply_safety,effectiveness"
    tested = ("safe/harm", "effective/help")

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records. Both parts must be there."""
        folder = data / "test" if (data / "test").is_dir() else data
        files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in ENDINGS]
        found = {part: [p for p in files if p.name.lower().startswith(part)] for part in PARTS}
        for part, own in found.items():
            if not own:
                raise UserError(f"{folder}: has no {part}*.parquet or {part}*.json")
        read = Reader(data, pictures, self.license, "SPA-VL")
        rows = (
            FileRow(row.where, {**row.data, "_part": part, "_number": number}, row.error)
            for part, own in found.items()
            for number, row in enumerate(row for path in own for row in read_rows(path))
        )
        return collect(rows, lambda row: _item(row, read))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure. `unsafe` is the unsafe rate of the source."""
        parts = split(rows, "part")
        harm, helping = (parts.get(part, []) for part in PARTS)
        found = {
            "unsafe/harm": share(harm, attacked),
            "safe/harm": share(harm, safe),
            "effective/help": share(helping, effective),
            "safe/help": share(helping, safe),
        }
        for kind, own in split(harm, "kind").items():
            if kind != "None":
                found[f"safe/harm/{kind}"] = share(own, safe)
        found["judged"] = share(rows, judged)
        return found


def _item(row: Mapping[str, Any], read: Reader) -> Record:
    part = row["_part"]
    cells = fields.pictures(row, "image")
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} pictures; one is shown")
    number = row["_number"] if row.get("id") is None else row["id"]
    return read.record(
        f"spa_vl-{part}-{number}",
        fields.text(row, "question").replace(IMAGE_MARKER, "").strip(),
        [read.find(c, "test", "images", "test/images") if isinstance(c, str) else c for c in cells],
        risky=part == "harm",
        part=part,
        kind=row.get("class1"),
        class2=row.get("class2"),
        class3=row.get("class3"),
    )
