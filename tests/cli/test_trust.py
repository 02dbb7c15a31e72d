"""`srpo judge sample`, `calibrate` and `compare` on workdirs as the other verbs leave them."""

from __future__ import annotations

import hashlib
import json
import shlex

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.command.parse import parse
from srpo_jax.data_pipelines.answer_store import answers_folder, finish_answers
from srpo_jax.data_pipelines.tree_store import shard_path, write_shard
from srpo_jax.data_pipelines.verdict_store import FIELDS, FOLDER, VerdictSet
from srpo_jax.files import write_json
from srpo_jax.judge.trust.compare import Comparison, likeness
from srpo_jax.judge.trust.tables import format_comparison
from tests.support import judged
from tests.support.bucket_server import serving

WORDS = {"S": "SAFE", "U": "UNSAFE", "E": "ERROR"}
STRICT, LAX = "SSUUUE", "SSSSUU"


def run(capsys, *argv):
    """(exit code, stdout, stderr) of one command in this process."""
    code = cli.main(["judge", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def trees_by(verdicts):
    """Twelve trees, of which every branch has its verdict, one more is a copy, one unfinished."""
    found = []
    for number in range(12):
        branches = [judged.branch(0, k, WORDS[c], score=0.1 * k) for k, c in enumerate(verdicts)]
        copy = {**branches[2], "k": 6}
        cut = judged.branch(0, 7, "ERROR", finished=False, status="unfinished")
        category = ("violence", "privacy_violations")[number % 2]
        made = judged.tree(f"t{number}", branches=[*branches, copy, cut], category=category)
        found.append(made)
    return found


@pytest.fixture
def workdir(tmp_path):
    judged.write_judged(tmp_path / "trees", trees_by(STRICT), name="strict")
    judged.write_verdicts(tmp_path / "trees", trees_by(LAX), name="lax")
    return tmp_path


def label(path, truth, out=None):
    """Fills in a file of rows as a person would: by k."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["reply_verdict"] = WORDS[truth[row["k"]]]
    (out or path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_from_sampling_to_the_numbers(capsys, workdir):
    """The rows to label say nothing of the verdict and are not overwritten once labelled; calibrate
    prints the confusion and the rates of all cases, and writes the page; the same labels do for a
    judge by which they were not sampled; of two people alpha is told."""
    code, out, _ = run(capsys, "sample", f"--workdir={workdir}", "--verdicts=strict", "--count=30")
    file = workdir / "to_label.jsonl"
    assert code == 0 and "wrote 30 cases" in out and f"--labels={file}" in out
    rows = label(file, "SSSUUU")
    assert len(rows) == 30 and {row["sampled_by"] for row in rows} == {"strict"}
    assert not {row["k"] for row in rows} & {6, 7} and {len(row) for row in rows} == {8}
    before = file.read_bytes()
    code, _, err = run(capsys, "sample", f"--workdir={workdir}", "--verdicts=strict")
    assert code == 2 and "and is not overwritten" in err and err.count("\n") == 1
    assert file.read_bytes() == before

    say = f"--workdir={workdir}", f"--labels={file}"
    code, out, _ = run(capsys, "calibrate", *say, "--verdicts=strict")
    assert code == 0 and max(map(len, out.splitlines()[:-1])) <= 120
    lines = {line[:27].strip(): line[27:].split()[:1] for line in out.splitlines()}
    assert "cases: 72: 24 SAFE, 36 UNSAFE, 12 ERROR, of the trees of" in out
    assert lines["sensitivity"] == lines["right when it says SAFE"] == ["100.0"]
    assert lines["UNSAFE by the judge"] == ["60.0"] and lines["AUROC"] == ["1.000"]
    share = sum(row["k"] in (3, 4) for row in rows) / sum(row["k"] in (2, 3, 4) for row in rows)
    assert lines["UNSAFE, corrected"] == [f"{60 * share:.1f}"]
    page = (workdir / "calibration.html").read_text()
    assert "False alarms" in page and "Not judged" in page and "Missed" not in page

    (violence,) = [line.split() for line in out.splitlines() if line.startswith("violence")]
    assert violence[1] == "36" and violence[3] == "100.0" and "violence" in page
    kept = json.loads((workdir / "calibration.json").read_text())
    assert kept["judge"]["set"] == "strict" and kept["labels"]["cases"] == 30
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert kept["labels"]["files"] == {"to_label.jsonl": digest}
    assert kept["estimates"]["sensitivity"]["value"] == 1 and kept["cases"]["ERROR"] == 12
    assert kept["by_category"]["violence"]["cases"] == 36
    assert str(workdir) not in json.dumps(kept)
    assert cli.main(["data", "card", str(workdir)]) == 0
    card = (workdir / "README.md").read_text()
    assert "verdict set strict, on the trees: 30 cases labelled by one person" in card
    assert f"kappa {kept['kappa']:.2f}" in card and "sensitivity 100.0 % (" in card
    capsys.readouterr()

    other = workdir / "other.jsonl"
    label(file, "SSSSUU", other)
    out = run(capsys, "calibrate", *say[:1], f"--labels={file},{other}", "--verdicts=lax")[1]
    assert "same verdict of strict" in out and "divided evenly" in out
    assert "by to_label, other" in out and "alpha of the people" in out


def test_a_file_in_a_bucket_is_brought_here_before_it_is_filled_in(capsys, workdir, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    files = [path for path in workdir.rglob("*") if path.is_file()]
    there = {f"b-a/run/{path.relative_to(workdir)}": path.read_bytes() for path in files}
    with serving(there) as bucket:
        code, out, _ = run(capsys, "sample", "--workdir=gs://b-a/run", "--verdicts=lax")
        assert code == 0 and bucket.get("b-a/run/to_label.jsonl")
    assert "gcloud storage cp gs://b-a/run/to_label.jsonl ." in out
    line = shlex.split(out.splitlines()[-1])
    assert {"--workdir=gs://b-a/run", "--labels=to_label.jsonl"} < set(line)
    assert parse(line[1], line[2:]).workdir == "gs://b-a/run", "it can be typed"


def test_answers_are_calibrated_too(capsys, tmp_path):
    """Those of an evaluation, by the set that its scores are of."""
    folder, about = tmp_path / "eval" / "after", {"of": "a test"}
    path = shard_path(answers_folder(folder, about), 0, 1, "answers-after")
    answers = [
        judged.tree(
            f"q{i}",
            branches=[judged.branch(judged=WORDS[c])],
            steps=[],
            step_texts=[],
            reply=[],
            reply_text="",
        )
        for i, c in enumerate("SSUU")
    ]
    write_shard(path, [judged.plain(answer) for answer in answers])
    finish_answers(folder, about)
    for name in ("one", "two"):
        place = tmp_path / FOLDER / name
        write_json(place / "judge.json", {"arbiter": name, "digest": name, "spec": {}, "reads": []})
        verdicts = VerdictSet(place)
        rows = []
        for answer in answers:
            (branch,) = answer["branches"]
            key = verdicts.key(answer, [], branch["reply_text"])
            rows.append({"key": key, **{field: branch[field] for field in FIELDS}})
        verdicts.write("answers-after-00000-of-00001", rows)
    labels = tmp_path / "labels.jsonl"
    said = [
        {"id": f"q{i}", "at": 0, "k": 0, "reply_verdict": WORDS[c]} for i, c in enumerate("SUUU")
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in said))
    command = "calibrate", f"--workdir={tmp_path}", f"--labels={labels}", "--answers=after"
    code, _, err = run(capsys, *command)
    assert code == 2 and "choose with --verdicts=NAME, one of one, two" in err
    write_json(folder / "scores.json", {"verdicts": "two"})
    code, out, _ = run(capsys, *command)
    assert (
        code == 0
        and "verdict set two" in out
        and "cases: 4: 2 SAFE, 2 UNSAFE, 0 ERROR, of the answers of" in out
    )
    assert "sensitivity                   66.7 %" in out
    code, out, _ = run(capsys, "compare", "one", "two", *command[1:2], "--answers=after")
    assert code == 0 and "4 cases that both judged" in out


def test_two_sets_are_compared(capsys, workdir):
    """Table, rates with intervals, agreement by category, the test, and the first cases that
    differ."""
    code, out, _ = run(capsys, "compare", "strict", "lax", f"--workdir={workdir}")
    assert code == 0 and max(map(len, out.splitlines())) <= 120
    assert "72 cases that both judged, 0 more only A, 0 only B, of the trees of" in out
    table = [line.split() for line in out.splitlines()]
    assert ["A", "UNSAFE", "24", "12", "0"] in table and ["A", "ERROR", "0", "12", "0"] in table
    (overall,) = (row for row in table if row[:1] == ["all"])
    assert overall[:3] == ["all", "72", "60.0"] and overall[-4:-2] == ["60.0", "%"]
    assert [row[1] for row in table if row[:1] in (["violence"], ["privacy_violations"])] == [
        "36"
    ] * 2
    assert "UNSAFE only for A 24, only for B 0, p = 1.19e-07" in out
    assert "the first 10 of 36 cases" in out and "id t0, at 0, k 2: A UNSAFE, B SAFE" in out


def test_names_are_shown_with_their_digests():
    """Two sets of one panel differ at the end of their names alone."""
    names = [f"{'vote-' + 'a' * 35}-{digest}" for digest in ("0c06eb4f", "1d17fc50")]
    overall = likeness([("SAFE", "UNSAFE")])
    found = Comparison("trees", (names[0], names[1]), (0, 0), overall, {}, ())
    assert [line[3:] for line in format_comparison(found).splitlines()[:2]] == names


WRONG = [
    (["calibrate"], "--labels=FILE is missing"),
    (["calibrate", "--labels=labels.jsonl"], "there are 2 sets of verdicts on the trees of"),
    (["calibrate", "--labels=labels.jsonl", "--verdicts=x"], "no set of verdicts 'x' on the trees"),
    (["calibrate", "--labels=nowhere.jsonl", "--verdicts=lax"], "nowhere.jsonl: cannot be read"),
    (["calibrate", "--labels=labels.jsonl,./labels.jsonl"], "a file is given twice"),
    (
        ["calibrate", "--labels=labels.jsonl", "--verdicts=lax"],
        "not in the trees of trees: id 'no'",
    ),
    (
        ["calibrate", "--labels=labels.jsonl", "--answers=no"],
        "no answers; run `srpo eval --name=no`",
    ),
    (["calibrate", "--labels=labels.jsonl", "--out=x.json"], "--out=x.json: the page is HTML"),
    (
        ["calibrate", "--labels=labels.jsonl", "--out=theirs.html"],
        "theirs.json is there and holds no calibration",
    ),
    (["calibrate", "--labels=two.jsonl"], "sampled by the verdicts of 2 sets (lax, strict)"),
    (["sample", "--verdicts=lax", "--count=0"], "--count=0: at least 1"),
    (["sample", "--verdicts=lax", "--out=."], "--out=. is there and is no file"),
    (["sample", "--verdicts=lax", "--out=labels.jsonl/x"], "labels.jsonl is a file"),
    (["compare", "lax"], "two names of verdict sets are needed"),
    (["compare", "lax", "lax"], "'lax' is given twice"),
    (
        ["compare", "lax", "gone"],
        "no set of verdicts 'gone' on the trees of trees, only lax, strict",
    ),
    (["compare", "lax", "strict", "more"], "'more' is left over"),
]


@pytest.mark.parametrize("argv, said", WRONG, ids=[" ".join(argv) for argv, _ in WRONG])
def test_a_mistake_is_one_line(capsys, workdir, monkeypatch, argv, said):
    monkeypatch.chdir(workdir)
    row = {"id": "no", "at": 0, "k": 0, "reply_verdict": "SAFE"}
    (workdir / "labels.jsonl").write_text(json.dumps(row))
    (workdir / "theirs.json").write_text("{}")
    two = [json.dumps({**row, "sampled_by": name}) for name in ("strict", "lax")]
    (workdir / "two.jsonl").write_text("\n".join(two))
    code, out, err = run(capsys, *argv, "--workdir=.")
    assert code == 2 and out == "" and err.count("\n") == 1 and said in err


def test_without_verdicts_the_next_command_is_told(capsys, tmp_path):
    """No trees; trees that nobody judged; sets that have nothing in common."""
    command = "compare", "a", "b", f"--workdir={tmp_path}"
    assert "no trees; run `srpo explore` first" in run(capsys, *command)[2]
    trees = [judged.tree("t", branches=[judged.branch(0, k) for k in range(2)])]
    judged.write_trees(tmp_path / "trees", trees)
    assert "are not judged yet: run `srpo judge` first" in run(capsys, *command)[2]
    for name, k in (("a", 0), ("b", 1)):
        half = [{**trees[0], "branches": trees[0]["branches"][k : k + 1]}]
        judged.write_verdicts(tmp_path / "trees", half, name=name)
    assert "a and b have no case of the trees of" in run(capsys, *command)[2]


# A set as version 0.1 wrote it: text that must stay readable, whatever is written today.
OLD_JUDGE = (
    '{"arbiter": "old", "kind": "old", "digest": "0123456789abcdef", "spec": {}, "reads": []}'
)
OLD_PART = """\
{"key": "7de65162429d74683bb167c6de059f18", "reply_verdict": "SAFE", "path_verdict": "SAFE", \
"step_verdicts": [], "effective": null, "detail": "", "score": 0.1, "votes": [], "unsure": false, \
"failed": false}
{"key": "ac6ad793593e17c0aa26d4e5d3688807", "reply_verdict": "UNSAFE", "path_verdict": "ERROR", \
"step_verdicts": ["ERROR"], "effective": true, "detail": "says how", "score": 0.9, \
"votes": ["UNSAFE", "SAFE", "UNSAFE"], "unsure": false, "failed": false}
{"key": "e08a4b11028a9fab6e7dfdcb1a96716d", "reply_verdict": "ERROR", "path_verdict": "ERROR", \
"step_verdicts": [], "effective": null, "detail": "no answer", "score": null, "votes": [], \
"unsure": false, "failed": true}
"""


def test_an_old_set_of_verdicts_is_readable(capsys, tmp_path):
    """Keys, fields and files as they were when the format began, beside a set of today."""
    tree = judged.tree("t0", branches=[judged.branch(*at) for at in ((0, 0), (0, 1), (1, 0))])
    judged.write_judged(tmp_path / "trees", [tree], name="new")
    old = tmp_path / FOLDER / "old"
    old.mkdir()
    (old / "judge.json").write_text(OLD_JUDGE)
    part = old / "trees-00000-of-00001.0-9bd63d90.jsonl"
    part.write_text(OLD_PART)
    manifest = {"count": 3, "sha256": hashlib.sha256(OLD_PART.encode()).hexdigest()}
    part.with_name(f"{part.name}.manifest.json").write_text(json.dumps(manifest))

    where = f"--workdir={tmp_path}"
    code, out, _ = run(capsys, "sample", where, "--verdicts=old")
    assert code == 0 and "wrote 3 cases" in out
    label(tmp_path / "to_label.jsonl", "SU")
    code, out, _ = run(
        capsys, "calibrate", where, "--verdicts=old", f"--labels={tmp_path}/to_label.jsonl"
    )
    assert code == 0 and "1 SAFE, 1 UNSAFE, 1 ERROR" in out and "AUROC" in out
    code, out, _ = run(capsys, "compare", "old", "new", where)
    assert code == 0 and "A UNSAFE             1         0         0" in out
