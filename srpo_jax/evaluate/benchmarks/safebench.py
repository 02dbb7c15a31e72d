"""SafeBench: 23 risk scenarios, judged by a jury that deliberates (arXiv 2410.18927).

text/N.csv has one prompt a line in its first column, without a header; N/1.png, N/2.png, ... are
their pictures; N is a scenario, 1 to 23. (FigStep's questions are another SafeBench: figstep.py.)
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.rows import Row as FileRow
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.base import Benchmark, Published, Row
from srpo_jax.evaluate.benchmarks.counting import attacked, judged, safe, split
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, csv_rows
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import mean_score, share

SITE = "safebench-mm.github.io, averages"
SHOWN = {  # attack success rate, safety risk index (100 is safest)
    "Claude 3.5 Sonnet": (0.7, 99.3),
    "GPT-4o": (3.4, 96.1),
    "Qwen2-VL-7B": (36.4, 71.8),
    "LLaVA-1.6-Vicuna-7B": (40.6, 67.1),
    "Qwen2-VL-2B": (55.1, 58.0),
}
TEXTS = ("text/text", "text", ".")  # where the CSV files lie
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class SafeBench(Benchmark):
    """Attack success by the jury's verdict, and its ratings as a safety risk index."""

    name = "safebench"
    title = "SafeBench: 23 risk scenarios, by a jury"
    source = "huggingface.co/datasets/Zonghao2025/safebench"
    license = "none stated; treat it as for research only"
    layout = "text/N.csv and N/1.png, N/2.png, ... for the scenarios N = 1 to 23"
    protocol = "SafeBench: five jurors, who hear each other, then a foreman; a verdict and a rating"
    departures = (
        "the jury is yours: arbiter.kind=jury with five members (configs/judge_panel.py); any "
        "other arbiter works, and is another protocol",
        "the released jury is one model whose deliberation is not connected",
        "how ratings become an index is not written down: 1 to 5 are taken as 0 to 100",
    )
    published = tuple(
        Published(model, dict(zip(("attack_success", "safety_risk_index"), values)), SITE)
        for model, values in SHOWN.items()
    )
    rubrics = "safebench_juror"
    tested = ("safe",)

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        read = Reader(data, pictures, self.license, "SafeBench")
        for folder in TEXTS:
            files = [p for p in (data / folder).glob("*.csv") if p.stem.isdecimal()]
            if files:
                break
        else:
            raise UserError(f"{data}: has no text/1.csv; {self.layout}")
        rows = (
            FileRow(row.where, {**row.data, "scenario": path.stem, "number": number}, row.error)
            for path in sorted(files, key=lambda path: int(path.stem))
            for number, row in enumerate(csv_rows(path, ("prompt",)), 1)
        )
        return collect(rows, lambda row: _item(row, read))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure. The index is of the mean rating of the jurors."""
        found = {
            "safe": share(rows, safe),
            "attack_success": share(rows, attacked),
            "safety_risk_index": mean_score(rows, _rated),
        }
        for scenario, own in split(rows, "scenario").items():
            found[f"safe/{scenario}"] = share(own, safe)
        found["judged"] = share(rows, judged)
        return found


def _rated(row: Row) -> float | None:
    """How safe, 0 to 1; None of a reply without a rating. 0 of an answer that was not judged."""
    if not judged(row):
        return 0.0
    return None if row["score"] is None else 1 - row["score"]


def _item(row: Mapping[str, Any], read: Reader) -> Record:
    stem = f"{row['scenario']}/{row['number']}"
    images = [f"{stem}{end}" for end in ENDINGS if (read.root / f"{stem}{end}").is_file()]
    return read.record(
        f"safebench-{row['scenario']}-{row['number']}",
        fields.text(row, "prompt").strip(),
        images[:1] or [f"{stem}.png"],
        risky=True,
        scenario=str(row["scenario"]).zfill(2),
    )
