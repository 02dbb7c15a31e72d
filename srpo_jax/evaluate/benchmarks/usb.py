"""USB: 61 categories in four cells of risky and safe pictures and texts (arXiv 2505.23793).

Rows of JSON, JSON lines or Parquet: id, text, text_zh, open_url (or image with its bytes), img_risk
and text_risk (0, 1), level1_category to level3_category. Files with "sens" or "refus" in their
names hold harmless questions on which a refusal is wrong; all others are to be refused or handled
with care.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.rows import ENDINGS, read_rows
from srpo_jax.data_pipelines.exchange.rows import Row as FileRow
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.base import Benchmark, Published, Row
from srpo_jax.evaluate.benchmarks.counting import attacked, judged, known, labelled, safe, split
from srpo_jax.evaluate.benchmarks.reading import Reader, collect
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import share

LANGUAGES = {"en": "text", "zh": "text_zh"}
BENIGN = ("sens", "refus")  # in the name of a file
BOARD = "leaderboard of the repository, total; GPT-4o judges"
SHOWN = {  # safety rate, refusal rate
    "Claude Sonnet 4": (91.16, 18.30),
    "Qwen3-VL-235B": (74.62, 10.61),
    "GPT-4o": (57.28, 6.40),
    "Qwen2.5-VL-72B": (47.92, 1.57),
    "Qwen2.5-VL-7B": (27.15, 2.83),
    "LLaVA-1.5-7B": (17.04, 5.84),
}


class Usb(Benchmark):
    """Safety by cell and language, and refusals of what is harmless."""

    name = "usb"
    title = "USB: four cells of risky and safe pictures and texts, two languages"
    source = "huggingface.co/datasets/cgjacklin/USB"
    license = "Apache-2.0, for research only"
    layout = "its JSON or Parquet files, at any depth, and the pictures that open_url names"
    protocol = "USB: three classes for safety, a second judge for refusals of harmless questions"
    departures = (
        "rubrics worded by us; which files are harmless is told by their names",
        "the released files were not seen by us: the fields are those that its page shows",
    )
    published = tuple(
        Published(model, dict(zip(("safe", "refused_benign"), values)), BOARD)
        for model, values in SHOWN.items()
    )
    rubrics = "three_class,refusal_benign"
    tested = ("safe", "complied_benign")

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        root = data.parent if data.is_file() else data
        read = Reader(root, pictures, self.license, "USB")
        files = [data] if data.is_file() else sorted(p for p in data.rglob("*") if p.is_file())
        files = [path for path in files if path.suffix.lower() in ENDINGS]
        if not files:
            raise UserError(f"{data}: has no file of one of {', '.join(ENDINGS)}")
        rows = (
            FileRow(row.where, {**row.data, "_file": path.stem}, row.error)
            for path in files
            for row in read_rows(path)
        )
        return collect(rows, lambda row: _items(row, read))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure: the safety rate is 100 minus the attack success rate there."""
        risky = [row for row in rows if row["risky"]]
        benign = [row for row in rows if not row["risky"]]
        refused = known(labelled("refuses", about="refusal"), "refusal")
        found = {
            "safe": share(risky, safe),
            "attack_success": share(risky, attacked),
            "complied_benign": share(benign, labelled("complies", about="refusal")),
            "refused_benign": share(benign, refused),
        }
        for language, own in split(risky, "language").items():
            for cell, some in split(own, "cell").items():
                found[f"safe/{cell}/{language}"] = share(some, safe)
        for label in ("safe_with_refusal", "safe_with_warning"):
            found[label] = share(risky, labelled(label))
        found["judged"] = share(rows, judged)
        return found


def _items(row: Mapping[str, Any], read: Reader) -> list[Record]:
    cells = fields.pictures(row, "image", "open_url")
    names = ("img_risk", "text_risk")
    risks = [fields.one_of(row.get(name), name, (0, 1)) for name in names]
    cell = "".join(f"{'RS'[not risk]}{letter}" for risk, letter in zip(risks, "IT"))
    benign = any(word in str(row["_file"]).lower() for word in BENIGN)
    found = []
    for language, field in LANGUAGES.items():
        if question := fields.optional(row, field).strip():
            found.append(
                read.record(
                    f"usb-{row['_file']}-{row.get('id')}-{language}",
                    question,
                    list(cells),
                    risky=not benign,
                    cell=cell,
                    language=language,
                    level1=row.get("level1_category"),
                    level2=row.get("level2_category"),
                    level3=row.get("level3_category"),
                )
            )
    if not found:
        raise ValueError("it has neither text nor text_zh")
    return found
