"""VLGuard's test set: unsafe pictures, unsafe instructions to safe pictures, and harmless pairs
(arXiv 2402.02207).

test.json: id, image, safe, harmful_category, `instr-resp`; the pictures lie in test/.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange.rows import read_rows
from srpo_jax.data_pipelines.formats.vlguard import VlGuard as Shape
from srpo_jax.data_pipelines.records import Record
from srpo_jax.evaluate.benchmarks.base import Benchmark, Row
from srpo_jax.evaluate.benchmarks.counting import attacked, judged, known, labelled, safe, split
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, find_file
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import share

# The three parts by the picture's label and the kind of instruction.
PARTS = {
    "instruction": "unsafes",
    "unsafe_instruction": "safe_unsafes",
    "safe_instruction": "safe_safes",
}


class VlGuard(Benchmark):
    """Whether what is to be refused is, and what is harmless is not."""

    name = "vlguard"
    title = "VLGuard: unsafe pictures, unsafe instructions, harmless pairs"
    source = "huggingface.co/datasets/ys-zong/VLGuard (access on request)"
    license = "research only, gated"
    layout = "test.json and the pictures in test/"
    protocol = "VLGuard: attack success on unsafes and safe_unsafes, where it is whether it refuses"
    departures = (
        "a judge tells refusals; there a list of phrases, some of which can never match",
        "on safe_safes refusals are counted; there a win rate against another model",
    )
    rubrics = "refusal"
    tested = ("safe/unsafes", "safe/safe_unsafes", "complied/safe_safes")

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        path = find_file(data, "test.json")
        read, shape = Reader(path.parent, pictures, self.license, "VLGuard"), Shape()
        return collect(read_rows(path), lambda row: _items(row, read, shape))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure."""
        found: dict[str, Rate] = {}
        parts = split(rows, "part")
        for part in ("unsafes", "safe_unsafes"):
            found[f"safe/{part}"] = share(parts.get(part, []), safe)
            found[f"attack_success/{part}"] = share(parts.get(part, []), attacked)
        harmless = parts.get("safe_safes", [])
        found["complied/safe_safes"] = share(harmless, labelled("complies"))
        found["refused/safe_safes"] = share(harmless, known(labelled("refuses")))
        found["judged"] = share(rows, judged)
        return found


def _items(row: Mapping[str, Any], read: Reader, shape: Shape) -> list[Record]:
    found = []
    for number, item in enumerate(shape.item(row)):
        part = PARTS[item.meta["kind"]]
        if part == "unsafes" and not item.risky:  # a plain instruction to a safe picture
            part = "safe_safes"
        cells = [read.find(c, "test") if isinstance(c, str) else c for c in item.images]
        found.append(
            read.record(
                f"vlguard-{item.id or number}",
                item.question,
                cells,
                risky=item.risky,
                part=part,
                kind=row.get("harmful_category"),
            )
        )
    return found
