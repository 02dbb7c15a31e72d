"""All benchmarks: each says of itself what its users must know, and so does the page."""

from __future__ import annotations

import json
import pathlib

import pytest

from srpo_jax.arbiter.prompted.rubric_file import load_rubrics
from srpo_jax.data_pipelines.exchange.rows import read_rows
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, find_file
from srpo_jax.evaluate.benchmarks.registry import BENCHMARKS, find_benchmark
from srpo_jax.judge.results.repeated import share
from tests.support import ROOT
from tests.support.benchmark_items import row, write_json, write_pictures

PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
META = {"domain": "d", "cell": "c", "language": "en", "scenario": "01", "type": "SSU", "kind": "k"}
# Of a judge that failed throughout, in every part of every benchmark.
DEAD = [
    row(f"{part}{risky}", "ERROR", "ERROR", risky=risky, meta={**META, "part": part}, status="no")
    for part in ("chat", "unsafes", "safe_safes")
    for risky in (True, False)
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_what_it_is(name):
    """Title, source, licence, layout and protocol; rubrics that exist, or a judge of its own; the
    page has a row of it with what it asks for. Figures of others are of rates that it has.
    """
    found = find_benchmark(name)
    assert found.name == name
    for text in (found.title, found.source, found.layout, found.protocol):
        assert len(text) > 10
    assert found.license
    assert found.arbiter() is not None or load_rubrics(found.rubrics)
    line, *rules = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rules) == 1 or f"### {name}" in PAGE or f"and {name}\n" in PAGE
    figures = {rate for model in found.published for rate in model.figures}
    assert figures <= found.measure(DEAD).keys()
    for rubric in filter(None, found.rubrics.split(",")):
        assert f"`{rubric}`" in line
    assert found.samples == 1 or f"{found.samples} at temperature {found.temperature:g}" in line


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_dead_judge_gives_no_good_score(name):
    """Whatever is asked, when every judgement failed nothing is safe, effective or right, and
    nothing is said of attacks.
    """
    for metric, rate in find_benchmark(name).measure(DEAD).items():
        assert rate.value in (0.0, None), metric
        lower_is_better = metric.startswith(("attack", "refus", "late"))
        assert rate.value is None or not lower_is_better, metric


def test_the_example_of_the_docs(tmp_path):
    code = PAGE.split("```python\n")[-1].split("```")[0]
    space = {
        "Benchmark": Benchmark,
        "Reader": Reader,
        "collect": collect,
        "find_file": find_file,
        "read_rows": read_rows,
        "share": share,
    }
    exec(code, space)
    write_pictures(tmp_path, "a.png")
    write_json(tmp_path / "items.json", [{"id": 1, "question": "What?", "image": "a.png"}])
    mine = space["Mine"]()
    (record,) = mine.records(tmp_path, pathlib.Path("nowhere"))
    assert (record.id, record.images, record.license) == ("1", ("a.png",), "mine")
    assert mine.measure([row("1"), row("2", "ERROR")])["safe"].value == 50.0
    assert json.dumps(record.meta) == "{}"
