"""The report's section "Where safety is lost": there with its numbers, or not there at all."""

from __future__ import annotations

import json
import pathlib

import pytest

from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.runs.report.page import write_report
from tests.support.report_sample import make_workdir


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Two rounds, the second one explored by the policy of the first."""
    folder = tmp_path_factory.mktemp("rounds")
    make_workdir(folder / "round-1", trees=6)
    make_workdir(folder / "round-2", trees=4, branches=3)
    (folder / "rounds.json").write_text('{"run": {}, "rounds": []}')
    return folder


def section(workdir: pathlib.Path) -> str:
    page = write_report(workdir, workdir / "page.html").read_text()
    return page.partition('<section id="lost">')[2].partition("</section>")[0]


def safe_after(folder, at) -> str:
    """ "k/n" of the branches of risky questions that leave after so many steps, counted here."""
    trees = JudgedTrees(read_shards(folder / "trees"), find_set(folder / "trees"))
    found = [
        b["reply_verdict"] for t in trees if t["risky"] for b in t["branches"] if b["at"] == at
    ]
    return f"{found.count('SAFE')}/{len(found)}"


def test_prefixes_before_and_after_and_first_failures(rounds):
    """A round's page has its own branches and those of the round after, which its policy sampled;
    the last round, and the folder of all rounds, have their own alone. Answers of both evaluations
    are counted by their first unsafe step."""
    first, second = rounds / "round-1", rounds / "round-2"
    text = section(first)
    assert "before training, in round-1" in text and "after it, in round-2" in text
    for at in (0, 3, 5):
        assert f"{safe_after(first, at)}, " in text and f"{safe_after(second, at)}, " in text
    rows = [json.loads(line) for line in open(first / "eval" / "before" / "generations.jsonl")]
    risky = [row for row in rows if row["risky"]]
    third = sum(r["step_verdicts"][:3] == ["SAFE", "SAFE", "UNSAFE"] for r in risky)
    assert third and f"{third}/{len(risky)}, " in text
    assert "step 6" in text and "no failure" in text and "no step named" not in text
    alone = section(second)
    assert "round-1" not in alone and f"{safe_after(second, 0)}, " in alone
    assert section(rounds) == alone


def test_nothing_to_show_is_no_section(rounds, tmp_path):
    """Without verdicts on trees, and without judged steps of answers, there is no such section."""
    make_workdir(tmp_path, trees=2)
    assert section(tmp_path)
    for path in tmp_path.glob("verdicts/*/*.jsonl"):
        path.unlink()
    for path in tmp_path.glob("eval/*/generations.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "step_verdicts": []}) + "\n" for row in rows))
    assert not section(tmp_path)
    assert 'href="#lost"' not in (tmp_path / "page.html").read_text()
