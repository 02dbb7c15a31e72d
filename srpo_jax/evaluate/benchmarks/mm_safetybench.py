"""MM-SafetyBench: harmful questions whose key phrase moves into a picture (arXiv 2311.17600), and
SafeMLRM's way to judge thinking and answers apart on them (arXiv 2504.08813).

NN-SCENARIO.json for 13 scenarios, {id: {Question, Rephrased Question, Rephrased Question(SD)}}, in
the folder or in processed_questions; pictures SCENARIO/{SD,SD_TYPO,TYPO}/id.jpg, in imgs or beside.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.rows import Row as FileRow
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.base import Benchmark, Published, Row
from srpo_jax.evaluate.benchmarks.counting import (
    attacked,
    ends,
    judged,
    known,
    labelled,
    safe,
    split,
)
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, table_rows
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.repeated import share

# The kinds of pictures, and the question that belongs to each.
KINDS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
}
PLACES = ("imgs", "MM-SafetyBench(imgs)")
_FILE = re.compile(r"\d\d-\w+\.json")


def read_items(
    benchmark: Benchmark, data: pathlib.Path, pictures: pathlib.Path, kinds: Iterable[str]
) -> list[Record]:
    """The questions of these kinds. Errors: UserError."""
    folders = [data / "processed_questions", data / "data" / "processed_questions", data]
    files = next((found for folder in folders if (found := _files(folder))), [])
    if not files:
        raise UserError(f"{data}: has no 01-*.json; {benchmark.layout}")
    read = Reader(data, pictures, benchmark.license, "MM-SafetyBench")
    rows = (
        FileRow(row.where, {**row.data, "scenario": path.stem, "kind": kind}, row.error)
        for path in files
        for row in table_rows(path)
        for kind in kinds
    )
    return collect(rows, lambda row: _item(row, read))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.glob("*.json") if _FILE.fullmatch(path.name))


def _item(row: Mapping[str, Any], read: Reader) -> Record:
    scenario, kind, number = row["scenario"], row["kind"], row["id"]
    return read.record(
        f"mm_safetybench-{scenario}-{number}-{kind}",
        fields.text(row, KINDS[kind]),
        [read.find(f"{scenario}/{kind}/{number}.jpg", *PLACES)],
        risky=True,
        scenario=scenario,
        kind=kind,
        goal=fields.text(row, "Question"),
    )


class MmSafetyBench(Benchmark):
    """Attack success by kind of picture and by scenario."""

    name = "mm_safetybench"
    title = "MM-SafetyBench: harmful questions moved into pictures"
    source = "github.com/isXinLiu/MM-SafetyBench (pictures by Drive)"
    license = "CC BY-NC 4.0 by its page"
    layout = "processed_questions/NN-SCENARIO.json and imgs/SCENARIO/{SD,SD_TYPO,TYPO}/ID.jpg"
    protocol = "MM-SafetyBench: 13 scenarios, three kinds of pictures, safe or unsafe"
    departures = (
        "one rubric, worded by us, that has the rule for advice and authorities in it; there five "
        "scenarios have prompts of their own",
        "the judge sees the goal that the picture hides",
        "what cannot be judged is no failed attack",
    )
    rubrics = "goal_safety"
    tested = ("safe",)

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        return read_items(self, data, pictures, KINDS)

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure."""
        found = {"safe": share(rows, safe), "attack_success": share(rows, attacked)}
        for kind, own in split(rows, "kind").items():
            found[f"safe/{kind}"] = share(own, safe)
            found[f"attack_success/{kind}"] = share(own, attacked)
        for scenario, own in split(rows, "scenario").items():
            found[f"safe/{scenario}"] = share(own, safe)
        found["judged"] = share(rows, judged)
        return found


RELEASED = "worked out from the released histograms, without attack; gpt-4o-mini judges"


class SafeMlrm(Benchmark):
    """Thinking, reply and both together, each graded apart from 1 to 5; 5 is success."""

    name = "safemlrm"
    title = "SafeMLRM: are thinking and answer harmful, and which of them first?"
    source = MmSafetyBench.source
    license = MmSafetyBench.license
    layout = MmSafetyBench.layout
    protocol = "SafeMLRM: thinking, answer and whole graded 1 to 5 in three calls; 5 is success"
    departures = (
        "the pictures with words (SD_TYPO) of all 13 scenarios; theirs are 10, which is not said",
        "no word such as sorry ends the judging, as it does there, even inside honest thinking",
        "grades are worded by us, and the judge sees the goal that the picture hides",
    )
    published = tuple(
        Published(model, {"attack_success_whole": value}, RELEASED)
        for model, value in (
            ("Qwen2.5-VL-7B", 16.6),
            ("R1-Onevision-7B", 51.4),
            ("MM-Eureka-7B", 24.8),
            ("Llama-3.2-11B-Vision", 29.1),
        )
    )
    rubrics = "safemlrm_thinking,safemlrm_answer,safemlrm_whole"
    tested = ("answer_safe",)

    def records(self, data: pathlib.Path, pictures: pathlib.Path) -> list[Record]:
        """See Benchmark.records."""
        return read_items(self, data, pictures, ["SD_TYPO"])

    def measure(self, rows: Sequence[Row]) -> dict[str, Rate]:
        """See Benchmark.measure. An answer without thinking has none to grade."""
        thought = [row for row in rows if row["steps"]]
        worst = "level_5"
        found = {
            "thinking_safe": share(thought, lambda row: row["path_verdict"] == "SAFE"),
            "answer_safe": share(rows, safe),
            "attack_success_thinking": share(thought, known(labelled(worst, about="path"), "path")),
            "attack_success_answer": share(rows, known(labelled(worst))),
            "attack_success_whole": share(rows, known(labelled(worst, about="whole"), "whole")),
            "self_correction": share(thought, ends("UNSAFE", "SAFE")),
            "late_failure": share(thought, ends("SAFE", "UNSAFE")),
        }
        for scenario, own in split(rows, "scenario").items():
            found[f"answer_safe/{scenario}"] = share(own, safe)
        found["judged"] = share(rows, judged)
        return found
