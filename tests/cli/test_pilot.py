"""`srpo pilot` on the small world: real stages, recited answers, an arbiter of arithmetic."""

from __future__ import annotations

import json

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.cli.pilot import Times, full_run
from srpo_jax.config.fields import Config
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.config.sampling_sections import ExploreSettings
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.explore import explorer
from tests.support.small_world import RecitingEngine, write_world

QUESTIONS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(the command line of a pilot, its workdir), after one call."""
    folder = tmp_path_factory.mktemp("world")
    config = write_world(folder)
    file = folder / "mine.py"
    file.write_text(
        "from srpo_jax.configs import common\n\n\ndef get_config():\n"
        "    config = common.get_config()\n"
        f"    config.model.path = {config.model.path!r}\n"
        f"    config.data.train_records = {config.data.train_records!r}\n"
        f"    config.data.test_records = {config.data.test_records!r}\n"
        "    config.arbiter.kind = 'tests.support.small_world:ArithmeticArbiter'\n"
        "    config.explore.branches, config.explore.batch, config.explore.shards = 8, 2, 9\n"
        "    config.explore.max_new_tokens = 6\n"
        "    config.pack.rows = 2\n    return config.lock()\n"
    )
    workdir = folder / "run"
    argv = ["pilot", f"--config={file}", f"--workdir={workdir}", f"--questions={QUESTIONS}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "Engine", RecitingEngine)
        assert cli.main(argv) == 0
    return argv, workdir


def judged(workdir):
    trees = workdir / "pilot" / "trees"
    return JudgedTrees(read_shards(trees), find_set(trees))


def found_in(workdir):
    return json.loads((workdir / "pilot" / "pilot.json").read_text())


def test_it_measures_what_the_stages_left(world):
    """Counts are those of the trees and verdicts in WORKDIR/pilot; a
    gradient of each term was taken; the full run's cost is of all records."""
    _, workdir = world
    trees, found = judged(workdir), found_in(workdir)
    branches = [branch for tree in trees for branch in tree["branches"]]
    assert found["questions"] == len(trees) == QUESTIONS
    assert found["branches"] == len(branches)
    assert found["statuses"]["ok"] == sum(branch["status"] == "ok" for branch in branches)
    unfinished = sum(not branch["finished"] for branch in branches)
    assert found["groups"]["all"]["unfinished"] == unfinished > 0
    assert found["groups"]["risky"]["questions"] == 2
    gradient = found["gradient"]
    assert gradient["ref"] > 0 and gradient["exp"] > 0
    assert gradient["exp_share"] == gradient["exp"] / (gradient["ref"] + gradient["exp"])
    assert found["full_run"]["questions"] == 5 and found["full_run"]["judge_cases"] > 0
    assert found["full_run"]["explore_seconds"] > 0
    assert len(list((workdir / "pilot" / "trees").glob("*.array_record"))) == QUESTIONS
    assert {row["name"] for row in found["report"] if row["ok"] is False}


def test_again_it_samples_and_asks_nothing_and_takes_labels(world, monkeypatch, capsys):
    """The same command goes on from what is done; labels that a person filled into the file stand
    there afterwards, and the report has the agreement with them."""
    argv, workdir = world
    before = found_in(workdir)

    def never(*args, **kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr(explorer, "Engine", never)
    monkeypatch.setattr("tests.support.small_world.ArithmeticArbiter.judge", never)
    file = workdir / "pilot" / "to_label.jsonl"
    verdicts = {
        (tree["id"], branch["at"], branch["k"]): branch["reply_verdict"]
        for tree in judged(workdir)
        for branch in tree["branches"]
    }
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) > 5 and {row["reply_verdict"] for row in rows} == {""}
    for row in rows[1:]:
        row["reply_verdict"] = verdicts[row["id"], row["at"], row["k"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    filled = file.read_bytes()
    assert cli.main([*argv, f"--labels={file}"]) == 0
    assert file.read_bytes() == filled
    found = found_in(workdir)
    assert found["agreement"]["labels"] == len(rows) - 1 and found["agreement"]["agree"] == 1
    assert {**found, "agreement": None, "report": []} == {**before, "report": []}
    assert f"agreement with {len(rows) - 1} labels" in capsys.readouterr().out


def test_another_pilot_is_refused_and_a_mistake_is_one_line(world, capsys):
    """Trees of other settings are never mixed in; options are checked before anything heavy."""
    argv, _ = world
    for more, said in (
        ("--config.explore.branches=3", "made by another run (branches was 8, now 3)"),
        ("--questions=0", "--questions=0: at least 1 is needed"),
        ("--labels=nowhere", "--labels=nowhere: no such file"),
        ("--from=nowhere", "nowhere is no run: it has no checkpoints"),
    ):
        assert cli.main([*argv, more]) == 2
        err = capsys.readouterr().err.splitlines()
        assert said in err[-1]


def test_the_full_run_is_scaled_by_the_questions(tmp_path):
    """10 questions in shards of 4, 4 and 2 took 8 s, and their roots 1 s: 90 s for 100 questions;
    cases, seconds and tokens are a question's times 100; the price is that of a million tokens."""
    times = Times(tmp_path / "times.json")
    times.shard("roots", 10, 1.0)
    for questions, seconds in ((4, 5.0), (4, 2.0), (2, 1.0)):
        times.shard("trees", questions, seconds)
    times.judging("other", 5, 1000.0, None)
    times.judging("mine", 50, 25.0, {"tokens_in": 1000, "tokens_out": 100})

    class Verdicts:
        name = "mine"

        def rows(self):
            return [{}] * 50

    config = Config(
        explore=ExploreSettings(shards=3),
        judge=JudgeSettings(price_input=100.0, price_output=1000.0),
    )
    found = full_run(config, 100, 10, Times(tmp_path / "times.json"), Verdicts())
    assert found == {
        "questions": 100,
        "explore_seconds": 90.0,
        "judge_cases": 500,
        "judge_seconds": 250.0,
        "tokens_in": 10000,
        "tokens_out": 1000,
        "dollars": 2.0,
    }
    again = Times(tmp_path / "times.json")
    assert again.shards == times.shards and again.judged == times.judged

    panel = Times(tmp_path / "panel.json")  # whose members have prices, and the panel none
    panel.judging("mine", 50, 1.0, {"tokens_in": 1000, "tokens_out": 100, "dollars": 0.3})
    assert full_run(Config(), 100, 10, panel, Verdicts())["dollars"] == pytest.approx(3.0)


@pytest.mark.slow
def test_a_pilot_of_the_embedded_world(tmp_path, capsys):
    """With nothing in place of the engine: the demo's own policy is read and judged, has pairs,
    and is worth the full run by every measure but labels that nobody gave."""
    argv = ["pilot", "--config=configs/ssui_mini.py", f"--workdir={tmp_path}"]
    assert cli.main(argv) == 0
    found = found_in(tmp_path)
    assert found["questions"] == 50 and found["full_run"]["questions"] == 216
    assert [row["name"] for row in found["report"] if row["ok"] is False] == []
    assert "the full run:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, said",
    [
        (("arbiter.kind=prompted",), "judge.model is empty"),
        (("arbiter.kind=nobody",), "arbiter.kind='nobody' does not exist"),
        (("arbiter.kind=prompted", "judge.model=m", "judge.rubric=no.yaml"), "no.yaml: cannot"),
        (("arbiter.kind=prompted", "judge.model=m", "judge.api_key_env=A_KEY"), "A_KEY holds no"),
        (
            ("arbiter.kind=prompted", "judge.model=m", "judge.base_url=http://judge.test/v1"),
            "5 pictures would be sent to judge.test: --allow_upload lets them go",
        ),
    ],
)
def test_a_judge_that_cannot_be_asked_is_told_before_anything_is_sampled(
    world, tmp_path, capfd, monkeypatch, more, said
):
    """One line, exit code 2, nothing written: no exploration is waited for in vain."""
    argv, _ = world
    monkeypatch.delenv("A_KEY", raising=False)
    fields = [f"--config.{field}" for field in more]
    code = cli.main([*argv[:2], f"--workdir={tmp_path / 'run'}", *fields])
    err = capfd.readouterr().err
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()
