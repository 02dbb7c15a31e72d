"""`srpo data construct` against scripted agents: what comes out, what it costs, and what a kill
does.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.records import CATEGORIES, read_records, write_records
from srpo_jax.files import read_lines
from tests.support import ROOT
from tests.support.agents import SCRIPTS, THINGS, agents_stub, construct_argv, draw_pictures

GOOD = ("good", "redundant")
ASKING = re.compile(r"^(\w+): the-\w+: (\d+) requests .* about (\d+) tokens in", re.MULTILINE)
ALL = re.compile(r"in all at most (\d+) requests, retries apart; (\d+) tokens in, (\d+) out")
ARBITER = """
from srpo_jax.configs import common

def get_config():
    config = common.get_config()
    config.judge.model, config.judge.base_url, config.judge.price_input = "far", "{url}", 5.0
    return config.lock()
"""
KEPT = ("records.jsonl", "rejects.jsonl", "construct.json", "README.md")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("agents") / "pictures")


@pytest.fixture(scope="module")
def made(pictures):
    """A construction of every script; its folder, and what its server saw."""
    out = pictures.parent / "out"
    with agents_stub(pictures) as stub:
        assert cli.main(construct_argv(stub, pictures, out, "--license=CC0")) == 0
    return out, stub


def run(capsys, argv, code=0):
    """What a command prints, on stdout or, if it fails, on stderr."""
    assert cli.main(argv) == code
    out, err = capsys.readouterr()
    return err if code else out


def contents(out: pathlib.Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in KEPT}


def test_exactly_the_good_rows_become_records(made):
    """Every other script is in rejects.jsonl with its stage and reason, none is in neither; what
    was redundant comes out mended; verdicts, headings and the harmless twin are there, and the card
    names every model.
    """
    out, _ = made
    records = {record.id: record for record in read_records(out / "records.jsonl")}
    rejects = {row["id"].partition("-")[0]: row for row in read_lines(out / "rejects.jsonl")}
    scripts = {name.partition("-")[0] for name in records}
    assert scripts == set(GOOD) and scripts | set(rejects) == set(SCRIPTS)
    for script, row in rejects.items():
        assert row["why"].startswith(SCRIPTS[script]) and row["stage"], script
    assert len(records) == 4
    for name, record in records.items():
        twin = name.endswith("-benign")
        assert record.risky is not twin and record.license == "CC0"
        assert all(step.startswith(head) for step, head in zip(record.steps, SSUI, strict=True))
        assert (record.unsafe_reply is None) == twin
        if not twin:
            verdicts = {"text": "safe", "text_reply": "safe", "picture": "safe", "pair": "risky"}
            assert record.meta["construct"]["verdicts"] == verdicts
            assert str(record.category) in name and f"{name}-benign" in records
    mended = next(r for n, r in records.items() if n.startswith("redundant") and r.risky)
    assert "Now it says something of its own" in mended.steps[2]
    card = (out / "README.md").read_text()
    roles = ("writer", "answerer", "arbiter", "evaluator")
    assert all(f"* {role}: the-{role}" in card for role in roles)
    assert "* CC0: 4 records" in card and "the reasoning stays incomplete (1)" in card


def test_categories_are_dealt_out_in_turn(made, tmp_path, pictures, capsys):
    """No category has more than one row more than another, whatever pictures there are."""
    rows = read_lines(made[0] / "rejects.jsonl")
    found = [r.category for r in read_records(made[0] / "records.jsonl") if r.risky]
    found += [row["category"] for row in rows]
    counts = [found.count(name) for name in CATEGORIES]
    assert sum(counts) == len(SCRIPTS) and max(counts) - min(counts) <= 1


def test_the_words_are_judged_without_the_picture_and_the_pair_with_it(made):
    """The answerer never sees a picture, nor does who judges the words; each role is its model."""
    for body in made[1].bodies:
        content = body["messages"][1]["content"]
        shown = not isinstance(content, str) and any(p["type"] == "image_url" for p in content)
        words = body["messages"][0]["content"].startswith(
            ("You check questions", "You are a helpf")
        )
        assert shown is not words
        assert (body["model"] == "the-answerer") == body["messages"][0]["content"].startswith(
            "You are a helpful"
        )


def test_the_estimate_is_what_is_asked(pictures, tmp_path, capsys):
    """Before each stage: its requests and tokens, to the last. At the start: the most that can
    come, which comes when nothing is rejected; after a pilot also tokens out; afterwards nothing is
    left.
    """
    some = draw_pictures(tmp_path / "some", GOOD)
    with agents_stub(some) as stub:
        argv = construct_argv(stub, some, tmp_path / "out")
        (first,) = ALL.findall(run(capsys, [*argv, "--dry_run"]))
        assert stub.calls == 0 and not (tmp_path / "out").exists()
        said = run(capsys, [*argv, "--pilot=1"])
        assert stub.calls == 9 and not (tmp_path / "out" / "records.jsonl").exists()
        estimate = ALL.findall(said)[-1]
        assert (estimate[0], estimate[2]) == ("9", "90")
        said += run(capsys, argv)
        assert stub.calls == int(first[0]) == 18
        assert sum(int(n) for _, n, _ in ASKING.findall(said)) == stub.calls
        assert sum(int(n) for _, _, n in ASKING.findall(said)) == stub.complete.tokens_in
        (last,) = ALL.findall(run(capsys, [*argv, "--dry_run"]))
    assert last == ("0", "0", "0")
    with agents_stub(pictures) as stub:  # where some are rejected, the lines before each stage
        said = run(capsys, construct_argv(stub, pictures, tmp_path / "all"))
    assert sum(int(n) for _, n, _ in ASKING.findall(said)) == stub.calls - 1  # one asked again


def test_killed_at_any_moment_it_ends_with_the_same_bytes_and_asks_nothing_twice(tmp_path):
    some = draw_pictures(tmp_path / "some", ("good", "words_unsafe"))
    once, killed = tmp_path / "once" / "out", tmp_path / "killed" / "out"
    alone = "--config.judge.concurrency=1"  # what is under way when it is killed is asked again
    with agents_stub(some) as stub:
        assert cli.main(construct_argv(stub, some, once, alone)) == 0
        calls = stub.calls
    with agents_stub(some) as stub:
        argv = construct_argv(stub, some, killed, alone)
        program = [sys.executable, "-m", "tests.support.killed_construct", *argv]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert int(done.stdout) > 2
        assert stub.calls == calls
        assert len({json.dumps(body) for body in stub.bodies}) == calls
    assert contents(killed) == contents(once)


def test_what_has_no_answer_is_no_record_and_asked_again(tmp_path, capsys):
    """A server that fails ends with exit code 1 and writes no record; the next start asks for the
    rest alone.
    """
    some = draw_pictures(tmp_path / "some", GOOD)
    out = tmp_path / "out"
    with agents_stub(some) as stub:
        argv = construct_argv(stub, some, out, "--config.judge.max_requests=11")
        said = run(capsys, argv, code=1)
        assert "2 of 2 rows have no answer" in said or "1 of 2 rows have no answer" in said
        assert stub.calls == 11 and not (out / "records.jsonl").exists()
        run(capsys, argv)
        assert stub.calls == 18 and len(read_records(out / "records.jsonl")) == 4


WRONG = [
    (["without writer"], "--writer=MODEL is missing"),
    (["without evaluator"], "--evaluator=MODEL is missing"),
    (["--arbiter=the-writer"], "the-writer is --writer and --arbiter"),
    (["--evaluator=org/The-Writer"], "The-Writer is --writer and --evaluator"),
    (["--stages=nothing"], "there is msr_align, ssui, or a YAML file"),
    (["--per_image=10"], "must be 1 to 9"),
    (["--pilot=-1"], "must not be negative"),
    (["--config.judge.base_url=http://judge.invalid/v1"], "--allow_upload lets them go"),
]


@pytest.mark.parametrize("more, said", WRONG, ids=[" ".join(more) for more, _ in WRONG])
def test_what_cannot_be_is_said_before_anything_is_asked(pictures, tmp_path, capsys, more, said):
    with agents_stub(pictures) as stub:
        left_out = next((word.split()[1] for word in more if word.startswith("without ")), None)
        more = [word for word in more if left_out is None]
        argv = construct_argv(stub, pictures, tmp_path / "out", *more)
        argv = [word for word in argv if not word.startswith(f"--{left_out}=")]
        line = run(capsys, argv, code=2)
        assert stub.calls == 0
    assert said in line and line.count("\n") == 1
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_a_role_can_be_a_config_file(tmp_path, capsys):
    """Its server, model and prices are those of the section judge of that file."""
    some = draw_pictures(tmp_path / "some", ("good",))
    with agents_stub(some) as stub, agents_stub(some) as other:
        (tmp_path / "mine.py").write_text(ARBITER.format(url=other.url))
        argv = construct_argv(stub, some, tmp_path / "out", f"--arbiter={tmp_path / 'mine.py'}")
        said = run(capsys, argv)
        assert {body["model"] for body in other.bodies} == {"far"} and other.calls == 3
    (usage,) = [
        u for u in read_lines(tmp_path / "out" / "usage.jsonl") if u["stage"].endswith("pair")
    ]
    assert usage["dollars"] == pytest.approx(usage["tokens_in"] / 1e6 * 5) and "$" in said


def test_what_is_written_is_not_read_again_nor_over_what_others_wrote(tmp_path, capsys):
    """OUT within the pictures, and a README of somebody else, are refused before any is asked."""
    some = draw_pictures(tmp_path / "some", ("good",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with agents_stub(some) as stub:
        said = run(capsys, construct_argv(stub, some, some / "out"), code=2)
        assert "whose pictures are read" in said
        said = run(capsys, construct_argv(stub, some, tmp_path / "out"), code=2)
        assert "is no data card of ours" in said and stub.calls == 0


def test_one_model_in_two_roles_is_named_by_the_card(tmp_path, capsys):
    some = draw_pictures(tmp_path / "some", ("good",))
    with agents_stub(some) as stub:
        more = ("--arbiter=the-writer", "--allow_same_model")
        run(capsys, construct_argv(stub, some, tmp_path / "out", *more))
    assert "One model has several of these roles" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_shared_with_a_test_set(made, tmp_path, capsys):
    """A picture and a question of a set that is named are rejected with the id that they are of."""
    out, _ = made
    records = read_records(out / "records.jsonl")
    theirs = [r for r in records if r.id.startswith("good-") and r.risky]
    write_records(theirs, out / "test.jsonl")
    some = draw_pictures(tmp_path / "some", (*GOOD, "good_again"))
    with agents_stub(some) as stub:
        argv = construct_argv(stub, some, tmp_path / "out", f"--against={out / 'test.jsonl'}")
        run(capsys, argv)
    rejects = {r["id"].partition("-")[0]: r for r in read_lines(tmp_path / "out" / "rejects.jsonl")}
    told = f"in common with {out / 'test.jsonl'}: {theirs[0].id}"
    assert {name: (r["stage"], r["why"]) for name, r in rejects.items()} == {
        "good": ("start", told),  # the picture, before anything is asked
        "good_again": ("query", told),
    }


def test_a_second_list_of_stages_starts_from_questions(made, tmp_path, capsys):
    """MSR-Align: sorted under a policy, answered by its rules, kept by three marks."""
    out, _ = made
    names = (*GOOD, "incomplete")
    some = draw_pictures(tmp_path / "some", names)
    asked = [{"id": n, "images": [f"{n}.png"], "question": f"What of {THINGS[n]}?"} for n in names]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    (some / "records.jsonl").write_text(lines)
    with agents_stub(some, stages="msr_align") as stub:
        argv = construct_argv(stub, some, tmp_path / "out", "--stages=msr_align")
        argv.remove("--answerer=the-answerer")
        run(capsys, argv)
        policy = stub.bodies[-1]["messages"][1]["content"][1]["text"]
        assert stub.calls == 9 and "People come home unhurt" in policy
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert [record.id for record in records] == list(GOOD)
    assert records[0].category == "dangerous_behavior" and len(records[0].steps) == 3
    assert records[0].meta["construct"]["rules"] == 7
    (reject,) = read_lines(tmp_path / "out" / "rejects.jsonl")
    assert (reject["stage"], reject["why"]) == ("marks", "the rules are not rightly applied")
