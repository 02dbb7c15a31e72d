"""All benchmarks: each says of itself what its users must know, and so does the page."""

from __future__ import annotations

import itertools
import json
import pathlib
import random

import pytest

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.prompted.rubric_file import load_rubrics
from srpo_jax.arbiter.verdict import Case
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.data_pipelines.exchange.rows import read_rows
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.verdict_store import unjudged
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.benchmarks.reading import Reader, collect, find_file
from srpo_jax.evaluate.benchmarks.registry import BENCHMARKS, find_benchmark
from srpo_jax.judge.asking import ask
from srpo_jax.judge.results.changes import counts_by_question
from srpo_jax.judge.results.repeated import share
from tests.support import ROOT
from tests.support.benchmark_items import row, write_json, write_pictures

PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
META = {"domain": "d", "cell": "c", "language": "en", "scenario": "01", "type": "SSU", "kind": "k"}
# Of a judge that failed throughout, in every part of every benchmark.
DEAD = [
    row(
        f"{part}{risky}",
        "ERROR",
        "ERROR",
        risky=risky,
        meta={**META, "part": part},
        status="no",
        votes=["ERROR"] * 3,
    )
    for part in ("chat", "unsafes", "safe_safes")
    for risky in (True, False)
]
LESS_IS_BETTER = ("attack", "refus", "unsafe/", "late", "first")
ALL_OF_THEM = ("format_kept", "judged")  # of answers that can all be read, and are judged
CONDITIONAL = ("self_correction", "late_failure", "first_unsafe")  # of what else was judged


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
    rates = found.measure(DEAD).keys()
    assert figures <= rates
    assert not any(metric.startswith((*LESS_IS_BETTER, *CONDITIONAL)) for metric in found.tested)
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
        assert rate.value is None or not metric.startswith(LESS_IS_BETTER), metric


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_judgement_that_is_lost_makes_no_rate_better(name):
    """Of any answer, whatever was said of it and of the others: a rate of which more is better is
    not higher than it was, whatever a judge that refuses the worst ones keeps back. What is tested
    before and after is made of questions.
    """
    benchmark, draw = find_benchmark(name), random.Random(name)
    said = {
        "reply": ("complies", "partly", "refuses", "warns", "incapable", "level_1", "level_5"),
        "refusal": ("complies", "refuses"),
        "grounded": ("holds", "breaks"),
        "redundant": ("lean", "repeats"),
        "whole": ("level_1", "level_5"),
    }
    said["reply"] += ("safe_with_refusal", "safe_with_warning", "unsafe")

    def judged(number):
        verdict, path = draw.choices(("SAFE", "UNSAFE"), k=2)
        part = draw.choice(("chat", "unsafes", "safe_safes", "harm", "help"))
        return row(
            f"q{number}",
            verdict,
            path,
            risky=part not in ("safe_safes", "help"),
            meta={**META, "part": part, "type": draw.choice(("SSU", "SUU", "SSS"))},
            steps=["See."],
            step_verdicts=[path],
            effective=draw.random() < 0.5,
            labels={about: draw.choice(words) for about, words in said.items()},
            votes=[verdict, draw.choice(("SAFE", "UNSAFE"))],
            score=draw.random(),
        )

    for _ in range(20):
        rows = [judged(number) for number in range(8)]
        then = benchmark.measure(rows)
        tested = [metric for metric in benchmark.tested if metric in then]
        assert list(counts_by_question(benchmark.measure, rows, benchmark.tested)) == tested
        lost = {**unjudged("gone"), "votes": ["ERROR", "ERROR"]}
        rows[3] = {**rows[3], **lost}
        for metric, now in benchmark.measure(rows).items():
            was = then[metric].value
            if metric.startswith((*LESS_IS_BETTER, *CONDITIONAL)) or None in (was, now.value):
                continue
            assert now.value <= was + 1e-9, metric


class Drawing:
    """A back end that answers by lot, as the schema of the question allows."""

    host = "localhost"

    def __init__(self, seed):
        self.draw = random.Random(seed)

    def complete(self, requests, on_reply=None):
        found = []
        for i, request in enumerate(requests):
            text = json.dumps(self._of(request.schema))
            found.append(ChatReply(text, finish_reason="stop"))
            on_reply(i, found[-1])
        return found

    def _of(self, schema):
        if "properties" in schema:
            return {name: self._of(inner) for name, inner in schema["properties"].items()}
        return self.draw.choice(schema["enum"]) if "enum" in schema else "so"


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if find_benchmark(name).rubrics])
def test_what_the_judge_says_by_its_rubrics_reaches_every_rate(name):
    """Its labels are those that are counted: of answers that say all there is to say, each rate is
    somewhere between nothing and everything.
    """
    benchmark = find_benchmark(name)
    arbiter = Prompted(JudgeSettings(model="m", rubric=benchmark.rubrics), backend=Drawing(name))
    kinds = itertools.cycle(("SSS", "SSU", "USU", "UUU", "SUU"))
    metas = [
        {**META, "part": part, "type": next(kinds), "goal": "g", "safety_warning": "w"}
        for part in ("chat", "unsafes", "safe_unsafes", "safe_safes", "harm", "help")
        for _ in range(40)
    ]
    records = [
        Record(f"q{i}", (), f"What is {i}?", (), "Well.", risky=i % 2 == 0, meta=meta)
        for i, meta in enumerate(metas)
    ]
    cases = [
        Case(record, (f"See {record.id}.", "So."), f"So {record.id}.", True) for record in records
    ]
    rows = [
        row(case.record.id, risky=case.record.risky, meta=case.record.meta, steps=case.steps) | said
        for case, said in zip(cases, ask(arbiter, cases, timeout=60), strict=True)
    ]
    for metric, rate in benchmark.measure(rows).items():
        assert rate.n and (0 < rate.k < rate.n or metric in ALL_OF_THEM), (metric, rate)


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
