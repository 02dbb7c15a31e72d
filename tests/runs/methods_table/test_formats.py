"""The table as a terminal, Markdown, LaTeX and CSV show it, and the command that writes it."""

import csv
import io
import json

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.runs.methods_table.collect import collect
from srpo_jax.runs.methods_table.formats import FORMATS, render
from tests.support.scored import TEACHER, risky_rows, row, write_evaluation, write_run

EVIL = "a_b|c & 100% [x](http://y) <b> \\input{z}\n2"


@pytest.fixture
def workdir(tmp_path):
    """A base policy with 2 of 10 safe, a run with 9; a benchmark of its own metric."""
    write_run(tmp_path)
    harmless = [row(f"h{i}", "SAFE", risky=False, effective=i < 3) for i in range(4)]
    for name, safe in (("before", 2), ("after", 9)):
        rows = [*risky_rows(safe), *harmless]
        write_evaluation(tmp_path, name, rows, policy=name, judge=TEACHER)
    metric = {"value": 12.5, "k": 1, "n": 8, "low": 2.2, "high": 47.1, "method": "wilson"}
    write_evaluation(
        tmp_path,
        "siuo",
        risky_rows(5, 8),
        policy="after",
        benchmark=EVIL,
        metrics={"ASR": metric},
    )
    return tmp_path


def test_every_format_says_the_same(workdir):
    """Values, intervals, counts, tests, base model, data and judges, in all formats for readers."""
    found = collect([workdir])
    for form in set(FORMATS) - {"csv"}:
        text = render(found, form)
        for part in (
            *("base", "90.0 [59.6, 98.2] 9/10", "12.5 [2.2, 47.1] 1/8", "+70.0", "0.016", "tiny"),
            *("judged by its own teacher", "8 questions, 30 pairs", "b" * 12, "3/4", "ASR"),
        ):
            assert part in text, (form, part)
    assert max(map(len, render(found, "terminal").splitlines())) <= 120


def test_csv_holds_the_numbers(workdir):
    """One line for each method, benchmark and metric, with what was tested."""
    rows = list(csv.DictReader(io.StringIO(render(collect([workdir]), "csv"))))
    assert len(rows) == 4 + 4 + 2
    (line,) = [r for r in rows if r["metric"] == "safety_rate" and r["method"] != "base"]
    assert (float(line["value"]), line["k"], line["n"]) == (90, "9", "10")
    assert (float(line["change"]), line["gained"], line["lost"]) == (70, "7", "0")
    assert float(line["p_value"]) == 2 / 2**7 and line["judged_by_own_teacher"] == "True"
    (siuo,) = [r for r in rows if r["metric"] == "ASR"]
    assert siuo["benchmark"] == EVIL and siuo["change"] == ""


def test_names_are_words_in_every_format(workdir):
    """Markup in the name of a benchmark stays text."""
    found = collect([workdir])
    assert r"a\_b\|c & 100% \[x\]\(http://y\) \<b\> \\input\{z\} 2" in render(found, "markdown")
    latex = render(found, "latex")
    assert (
        r"a\_b|c \& 100\% [x](http://y) \textless{}b\textgreater{} \textbackslash{}input" in latex
    )
    assert all(
        line.startswith("%") or "\\input" not in line.replace("textbackslash{}input", "")
        for line in latex.splitlines()
    )


def test_the_command_prints_or_writes(workdir, tmp_path, capsys):
    """To the terminal, or whole into a file; a mistake is one line, and nothing is written."""
    assert cli.main(["table", str(workdir)]) == 0
    assert "base model: tiny" in capsys.readouterr().out
    out = tmp_path / "table.md"
    assert cli.main(["table", str(workdir), "--format=markdown", f"--out={out}"]) == 0
    assert out.read_text() == render(collect([workdir]), "markdown")
    capsys.readouterr()
    out.unlink()
    for args, said in (
        ([], "WORKDIR is missing"),
        ([str(workdir), "--format=html"], "any of terminal, markdown"),
        ([str(workdir), "format=csv"], "did you mean --format=csv"),
        ([str(workdir), f"--out={workdir}"], "is a folder"),
        ([str(tmp_path / "none"), f"--out={out}"], "does not exist"),
    ):
        assert cli.main(["table", *args]) == 2, args
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not out.exists()


def test_scores_that_no_run_writes_are_one_line(workdir, capsys):
    """Text for a number."""
    path = workdir / "eval" / "after" / "scores.json"
    stored = json.loads(path.read_text())
    stored["rates"]["safety_rate"]["low"] = "ten"
    path.write_text(json.dumps(stored))
    assert cli.main(["table", str(workdir)]) == 2
    assert "holds something that no run writes" in capsys.readouterr().err


def test_what_a_benchmark_says_is_tested_is(tmp_path):
    """Of its own metrics, question by question, instead of the rates that all evaluations have, and
    in the line of the metric; the seeds of a method are answers to the same questions.
    """
    metric = {"value": 50.0, "k": 5, "n": 10, "low": 20.0, "high": 80.0, "method": "wilson"}

    def right(count, left_out=0):
        return {"right": [[int(i < count), 1] for i in range(9)] + [[0, 1 - left_out]]}

    for seed, count in ((0, 8), (1, 9)):
        home = tmp_path / str(seed)
        write_run(home, seed=seed)
        more = {"benchmark": "mine", "metrics": {"right": metric}}
        write_evaluation(home, "before-mine", risky_rows(9), policy="b", tested=right(2), **more)
        own = right(count, left_out=1)
        write_evaluation(home, "mine", risky_rows(1), policy=f"t{seed}", tested=own, **more)
    rows = csv.DictReader(io.StringIO(render(collect([tmp_path / "0", tmp_path / "1"]), "csv")))
    tested = [row for row in rows if row["change"]]
    assert [(row["metric"], row["compared_questions"]) for row in tested] == [("right", "9")]
    (line,) = tested
    assert (line["gained"], line["lost"]) == ("7", "0")
    assert float(line["change"]) == pytest.approx(100 * ((8 + 9) / 2 - 2) / 9)
