"""The report of a pilot: which row is not met, and that what it advises can be typed."""

from __future__ import annotations

import copy
import pathlib
import shlex

import pytest

from srpo_jax.cli.pilot_report import Typed, full_run_commands, report_rows, show
from srpo_jax.command.parse import find_verb, parse
from srpo_jax.config.load import load_config
from tests.support import ROOT

MINI = f"{ROOT}/configs/ssui_mini.py"
WORDS = (f"--config={MINI}:srpo", "--config.objective.lambda_exp=0.3", "--config.seed=3")
GROUP = {
    "questions": 10,
    "with_pair": 8,
    "pairs": 40,
    "branches": 240,
    "unfinished": 2,
    "asked": 230,
    "error": 3,
    "safe": 120,
    "unsafe": 107,
}
GOOD = {
    "questions": 20,
    "branches": 480,
    "statuses": {"ok": 470, "unfinished": 4, "no_reply": 6},
    "repeated": 100,
    "groups": {name: dict(GROUP) for name in ("risky", "benign", "category violence")}
    | {"all": {name: 2 * value for name, value in GROUP.items()}},
    "agreement": {"labels": 40, "agree": 0.9, "kappa": 0.8, "table": {}},
    "gradient": {"ref": 3.0, "exp": 1.0, "exp_share": 0.25, "why_not": ""},
    "full_run": {
        "questions": 200,
        "explore_seconds": 7300.0,
        "with_compilation": False,
        "judge_cases": 4600,
        "judge_seconds": 90.0,
        "tokens_in": 2000000,
        "tokens_out": 10000,
        "dollars": 1.5,
    },
    "warmup_steps": 40,
}
TYPED = Typed(WORDS, "runs/my run", run="runs/first", labels="mine.jsonl", questions=20)


def rows_of(**changes):
    found = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = found
        for parent in parents:
            node = node[parent]
        node[last] = value
    return report_rows(load_config(*_split(WORDS)), found, TYPED), found


def _split(words):
    return words[0].removeprefix("--config="), list(words[1:])


def not_met(rows):
    return [row.name for row in rows if row.ok is False]


def test_a_good_pilot_says_how_to_go_on():
    """Nothing is advised but the full run; costs are told in words."""
    rows, found = rows_of()
    assert not_met(rows) == [] and not any(row.advice for row in rows)
    text = show(rows, found, TYPED)
    assert "2.0 h" in text and "4600 cases, 90 s" in text and "$1.50" in text
    verbs = [line.split()[1] for line in text.splitlines() if line.startswith("    srpo")]
    assert verbs == ["explore", "judge", "export", "train"]
    assert "--from=runs/first" in text and "--config.model.path=runs/first/export" in text


CASES = {
    "read as path and reply": {"statuses": {"ok": 300, "no_reply": 180}},
    "unfinished, all": {"groups__all__unfinished": 200},
    "unfinished, risky": {"groups__risky__unfinished": 200},
    "questions with a pair (risky questions)": {"groups__risky__with_pair": 1},
    "pairs a question (risky questions)": {"groups__risky__pairs": 9},
    "distinct branches of a point": {"repeated": 470},
    "ERROR of what was judged, all": {"groups__all__error": 60},
    "ERROR of what was judged, category violence (the worst)": {
        "groups__category violence__error": 60
    },
    "agreement with 40 labels": {"agreement__agree": 0.7},
    "Cohen's kappa with them": {"agreement__kappa": 0.5},
    "L_exp's share of the gradient norm": {"gradient__exp_share": 0.01, "gradient__exp": 0.03},
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_met_says_what_to_type(name):
    """One measure beyond its threshold is one row that is not met, and every command it advises is
    a whole one: its verb, options, config and overrides are taken by the command line's parser,
    each field is set once, and the full run is not advised."""
    rows, found = rows_of(**CASES[name])
    assert not_met(rows) == [name]
    advice = next(row.advice for row in rows if row.name == name)
    assert advice
    for line in advice:
        argv = shlex.split(line)
        assert argv[0] == "srpo"
        verb, spec, _ = find_verb(argv[1:])
        command = parse(argv[1], argv[2:])
        assert command.verb == verb
        if spec.config:
            command.config()
            fields = [word.partition("=")[0] for word in command.overrides]
            assert len(set(fields)) == len(fields) and "--config.seed" in fields
        if spec.workdir:
            assert command.workdir.startswith("runs/my run")
    text = show(rows, found, TYPED)
    assert "not ok" in text and "the full run" not in text


def test_the_warm_up_is_sft_with_adapters_and_the_road_goes_on_from_it():
    """References, train at lambda 0 for the epoch's steps, pilot and explore from its adapters, and
    training on what those explored begins with the export."""
    rows, _ = rows_of(statuses={"ok": 300, "no_reply": 180})
    lines = [shlex.split(line) for line in rows[0].advice]
    commands = [parse(argv[1], argv[2:]) for argv in lines]
    verbs = ["explore", "train", "pilot", "explore", "judge", "export", "train"]
    assert [command.verb for command in commands] == verbs
    warmup = "runs/my run/warmup"
    assert commands[0].options["references"] and commands[0].workdir == warmup
    config = commands[1].config()
    assert (config.objective.lambda_exp, config.lora.rank, config.train.steps) == (0, 16, 40)
    assert commands[1].workdir == commands[2].options["from"] == warmup
    assert commands[3].options["from"] == warmup and commands[3].workdir == "runs/my run"
    assert commands[6].config().model.path == f"{warmup}/export"
    assert commands[6].config().objective.lambda_exp == 0.3


@pytest.mark.parametrize(
    "run, workdir, place, count",
    [
        ("", "a", "a", 3),
        ("b", "a", "a", 4),
        ("a/warmup", "a/warmup", "a", 4),
        ("a", "a", "a-full", 4),
    ],
)
def test_the_full_run_never_lies_in_the_folder_of_the_run_that_it_begins_with(
    run, workdir, place, count
):
    """Its trees and checkpoints would be refused there."""
    lines = [shlex.split(line) for line in full_run_commands(Typed(WORDS, workdir, run))]
    commands = [parse(argv[1], argv[2:]) for argv in lines]
    assert len(commands) == count
    assert {c.workdir for c in commands if c.verb != "export"} == {place}
    assert {c.workdir for c in commands if c.verb == "export"} == ({run} if run else set())


def test_only_a_token_limit_asks_for_no_warm_up():
    """Where all that ended can be read, the advice is a longer limit alone."""
    rows, _ = rows_of(statuses={"ok": 300, "unfinished": 180}, groups__all__unfinished=180)
    assert not_met(rows) == ["read as path and reply", "unfinished, all"]
    advised = [line for row in rows for line in row.advice]
    assert len(advised) == 1 and "--config.explore.max_new_tokens=224" in advised[0]


@pytest.mark.parametrize("share, exp, aimed", [(0.01, 0.03, 0.3), (0.99, 297.0, 0.7)])
def test_the_advised_lambda_moves_the_share(share, exp, aimed):
    """With the advised lambda_exp the norms that were measured would have the share aimed at."""
    rows, _ = rows_of(gradient__exp_share=share, gradient__exp=exp)
    row = next(row for row in rows if row.name.startswith("L_exp"))
    argv = shlex.split(row.advice[0])
    command = parse(argv[1], argv[2:])
    assert (
        command.workdir == "runs/my run" and pathlib.Path(command.options["from"]).name == "first"
    )
    scaled = exp * command.config().objective.lambda_exp / 0.3
    assert scaled / (3.0 + scaled) == pytest.approx(aimed, abs=0.02)


def test_without_labels_the_file_to_fill_in_is_named():
    """It is not held against the pilot; what is too small to count is not either."""
    rows, found = rows_of(agreement=None, groups__benign__asked=5, groups__benign__error=5)
    assert not_met(rows) == []
    assert "runs/my run/pilot/to_label.jsonl" in show(rows, found, TYPED)
    there = TYPED._replace(workdir="gs://bucket-a/run", run="gs://bucket-a/run")
    rows = report_rows(load_config(*_split(WORDS)), found, there)
    advice = "\n".join(line for row in rows for line in row.advice)
    assert "gcloud storage cp gs://bucket-a/run/pilot/to_label.jsonl ." in advice
    assert "--labels=to_label.jsonl" in advice
    lines = [shlex.split(line) for line in full_run_commands(there)]
    commands = [parse(argv[1], argv[2:]) for argv in lines]
    assert {c.workdir for c in commands} == {"gs://bucket-a/run-full", "gs://bucket-a/run"}
