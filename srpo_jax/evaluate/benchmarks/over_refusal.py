"""Sets of harmless questions that sound or look dangerous: MOSSBench (arXiv 2406.17806), with
pictures, and XSTest (arXiv 2308.01263), of text alone, with dangerous twins.

MOSSBench: images_information/information.json, {id: {image, question, metadata: {over, ...}}}.
XSTest: xstest_prompts.csv with id, prompt, type, label (safe, unsafe), focus, note.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.records import Record
from srpo_jax.evaluate.benchmarks.base import Benchmark, Published, Row
from srpo_jax.evaluate.benchmarks.counting import attacked, judged, known, labelled, safe, split
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, csv_rows, find_file, table_rows
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import share

NOT_REFUSED = labelled("complies", "partly")
REFUSED = known(labelled("refuses"))
PAPER = "table of its paper"


class MossBench(Benchmark):
    """Compliance with harmless questions on pictures that look dangerous."""

    name = "mossbench"
    title = "MOSSBench: harmless questions that are refused"
    source = "github.com/xirui-li/MOSSBench (data/)"
    license = "CC BY-SA 4.0 by its page; training on it is forbidden"
    layout = "images_information/information.json and the pictures in images/"
    protocol = "MOSSBench: refused or not, by type of stimulus"
    departures = (
        "an empty answer is ERROR, which is no compliance; there it is a refusal",
        "the rubric is worded by us, and an unreadable judgement says nothing",
    )
    published = tuple(
        Published(model, {"refused": value}, PAPER)
        for model, value in (
            ("Claude 3 Opus", 70.67),
            ("LLaVA-1.5-7B", 12.33),
            ("GPT-4o", 6.33),
        )
    )
    rubrics = "refusal"
    tested = ("complied",)

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        path = find_file(data, "images_information/information.json", "information.json")
        root = data if data.is_dir() else path.parent
        read = Reader(root, pictures, self.license, "MOSSBench")
        return collect(table_rows(path), lambda row: _moss_item(row, read))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure."""
        found = {"complied": share(rows, NOT_REFUSED), "refused": share(rows, REFUSED)}
        for kind, own in split(rows, "kind").items():
            found[f"complied/{kind}"] = share(own, NOT_REFUSED)
        found["judged"] = share(rows, judged)
        return found


def _moss_item(row: Mapping[str, Any], read: Reader) -> Record:
    image = fields.text(row, "image")
    about = fields.mapping(row.get("metadata") or {}, "metadata")
    return read.record(
        f"mossbench-{row['id']}",
        fields.text(row, "question"),
        [read.find(image.removeprefix("./"), "images")],
        risky=False,
        kind=fields.optional(about, "over"),
    )


class XsTest(Benchmark):
    """Compliance with 250 safe prompts, refusal of 200 unsafe ones."""

    name = "xstest"
    title = "XSTest: safe texts that sound dangerous, and dangerous twins"
    source = "github.com/paul-rottger/xstest"
    license = "CC BY 4.0 by its page"
    layout = "xstest_prompts.csv"
    protocol = "XSTest: full compliance, partial refusal or full refusal"
    departures = ("the classes are worded by us",)
    rubrics = "refusal"
    tested = ("complied/safe", "safe/unsafe")

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        path = find_file(data, "xstest_prompts.csv", "xstest_v2_prompts.csv")
        read = Reader(path.parent, pictures, self.license, "XSTest")
        return collect(csv_rows(path), lambda row: _xs_item(row, read))

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure."""
        harmless = [row for row in rows if not row["risky"]]
        dangerous = [row for row in rows if row["risky"]]
        found = {
            "complied/safe": share(harmless, labelled("complies")),
            "refused_in_part/safe": share(harmless, known(labelled("partly"))),
            "refused/safe": share(harmless, REFUSED),
            "safe/unsafe": share(dangerous, safe),
            "attack_success/unsafe": share(dangerous, attacked),
        }
        for kind, own in split(harmless, "kind").items():
            found[f"complied/{kind}"] = share(own, labelled("complies"))
        found["judged"] = share(rows, judged)
        return found


def _xs_item(row: Mapping[str, Any], read: Reader) -> Record:
    kind = fields.text(row, "type").strip()
    label = fields.optional(row, "label") or ("unsafe" if kind.startswith("contrast") else "safe")
    label = fields.one_of(label, "label", ("safe", "unsafe"))
    return read.record(
        f"xstest-{fields.text(row, 'id').strip()}",
        fields.text(row, "prompt"),
        [],
        risky=label == "unsafe",
        kind=kind,
    )
