"""`srpo run`: rounds with the policy of the round before, stopped anywhere and gone on with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from srpo_jax.buckets.workdir import open_workdir
from srpo_jax.cli import main as cli
from srpo_jax.cli.rounds.stages import Round, round_seed
from srpo_jax.cli.rounds.walk import with_records
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.explore import explorer
from srpo_jax.models.hf.weights_digest import policy_digest
from tests.support import ROOT
from tests.support.bucket_server import serving
from tests.support.small_world import RecitingEngine, write_world

CONFIG = """
from srpo_jax.configs import common


def get_config():
    config = common.get_config()
    config.model.path = {model!r}
    config.data.train_records = config.data.test_records = {records!r}
    config.arbiter.kind = 'tests.support.small_world:ArithmeticArbiter'
    config.explore.update(branches=4, batch=2, shards=2, max_new_tokens=6)
    config.eval.update(batch=4, max_new_tokens=6)
    config.pack.rows = 2
    config.train.update(steps=2, learning_rate=0.01, warmup_steps=0)
    return config.lock()
"""
# Of a workdir, what has times in it, or says where something lies in time.
TIMED = ("events.jsonl", "metrics.jsonl", "usage.jsonl", "run.owner", "train.owner", ".owner")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with mine.py, its model and records; answers are recited while it is in use."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    records = str(folder / "records.jsonl")
    (folder / "mine.py").write_text(CONFIG.format(model=str(folder / "model"), records=records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "Engine", RecitingEngine)
        patch.setattr(evaluation, "Engine", RecitingEngine)
        yield folder


def command(world, workdir, *more) -> list[str]:
    return ["run", f"--config={world / 'mine.py'}", f"--workdir={workdir}", *more]


@pytest.fixture(scope="module")
def run(world):
    """The workdir of two rounds."""
    assert cli.main(command(world, world / "run", "--rounds=2")) == 0
    return world / "run"


def rounds_of(workdir) -> list[dict]:
    return json.loads((workdir / "rounds.json").read_text())["rounds"]


def sampled_by(folder) -> set[str]:
    return {tree["provenance"]["policy_digest"] for tree in read_shards(folder / "trees")}


def files(workdir) -> dict[str, bytes]:
    """What has to be the same, however often it was stopped: {path: bytes}."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        timed = path.name in TIMED or "checkpoints" in name.parts or "trees.claims" in name.parts
        if path.is_file() and not timed:
            text = path.read_bytes()
            found[str(name)] = text.replace(str(workdir).encode(), b"WORKDIR")
    return found


def test_round_2_explores_with_what_round_1_trained(world, run):
    """Trees of the second round name the weights that the first one exported, and not the base
    policy's; branches are fresh; rounds.json says the same; both rounds answer the same questions.
    """
    first, second = run / "round-1", run / "round-2"
    base, trained = policy_digest(world / "model"), policy_digest(first / "export")
    assert sampled_by(first) == {base} and sampled_by(second) == {trained} and base != trained
    assert [each["policy_digest"] for each in rounds_of(run)] == [base, trained]
    assert [each["stage"] for each in rounds_of(run)] == ["eval", "eval"]
    assert [each["seed"] for each in rounds_of(run)] == [0, round_seed(0, 2)]
    texts = [
        [branch["text"] for tree in read_shards(f / "trees") for branch in tree["branches"]]
        for f in (first, second)
    ]
    assert len(texts[0]) == len(texts[1]) and texts[0] != texts[1]
    begun = json.loads((second / "config.json").read_text())
    assert begun["run"]["model weights"] == trained
    answers = [
        json.loads((f / "eval" / "after" / "answers.json").read_text()) for f in (first, second)
    ]
    assert answers[0]["records"] == answers[1]["records"]
    assert [a["policy_digest"] for a in answers] == [trained, policy_digest(second / "export")]


@pytest.mark.slow  # a training
def test_what_lies_in_a_bucket_is_told_by_its_address(tmp_path, monkeypatch):
    """In rounds.json and in what the round writes: another host has it in another folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    records = "gs://bucket-a/mine.jsonl"
    config = load_config("configs/ssui_mini.py", [f"--config.data.train_records={records}"])
    with serving({"bucket-a/mine.jsonl": b""}), open_workdir("gs://bucket-a/one") as folder:
        named = with_records(config, folder).data
        assert named.train_records == records
        assert named.test_records == "gs://bucket-a/one/data/ssui_mini/test.jsonl"
        second = Round.of(config, folder, 2)
        assert second.policy == second.training.model.path == "gs://bucket-a/one/round-1/export"
    assert Round.of(config, tmp_path, 2).policy == str(tmp_path / "round-1" / "export")


def test_a_first_round_is_what_the_verbs_make(world, run):
    """Explored, judged, trained, exported by the verbs one by one: the same bytes."""
    workdir = world / "by-hand"
    of = (f"--config={world / 'mine.py'}", f"--workdir={workdir}")
    assert [cli.main([verb, *of]) for verb in ("explore", "judge", "train")] == [0, 0, 0]
    assert cli.main(["export", f"--workdir={workdir}"]) == 0
    by_hand, own = files(workdir), files(run / "round-1")
    same = [n for n in by_hand if n.split("/")[0] in ("trees", "verdicts", "export")]
    assert {"trees", "verdicts", "export"} == {name.split("/")[0] for name in same}
    differ = [n for n in same if by_hand[n] != own.get(n)]
    assert not differ


def test_again_it_does_nothing_and_what_is_gone_is_made_again(world, run, capsys, monkeypatch):
    """Of rounds that are done only the exports and the answers are needed: without an export it is
    written again from the checkpoint, with the same weights (its card has the scores now), and
    nothing is sampled."""

    def never(*args, **kwargs):
        raise AssertionError("sampled again")

    before = files(run)
    monkeypatch.setattr(explorer, "Engine", never)
    assert cli.main(command(world, run, "--rounds=2")) == 0
    said = capsys.readouterr().out
    assert "round 1 of 2: done before" in said and "round 2 of 2: done before" in said
    shutil.rmtree(run / "round-1" / "export")
    assert cli.main(command(world, run, "--rounds=2")) == 0
    assert "round 1 of 2: export\n" in capsys.readouterr().out
    after = files(run)
    card = [f"round-1/export/{name}" for name in ("README.md", "srpo_digests.json")]
    assert {name for name in after if after[name] != before[name]} == {*card, "rounds.json"}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--rounds=1"], "has 2 rounds already"),
        (["--rounds=0"], "--rounds=0: at least 1 is needed"),
        (["--rounds=many"], "many"),
        (["--rounds=2", "--config.train.steps=3"], "train.steps was 2, now 3"),
        (["--rounds=2", "--config.rounds.start=base"], "rounds.start was 'previous', now 'base'"),
        (["--rounds=2", "--config.eval.samples=2"], "eval.samples was 0, now 2"),
        (["--rounds=2", "--config.data.trees=x"], "leave data.trees empty"),
    ],
)
def test_a_mistake_is_one_line(world, run, capsys, more, said):
    """Fewer rounds than there are, no number, and another config are refused before anything is
    done."""
    before = files(run)
    assert cli.main(command(world, run, *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("srpo run: error: ") and said in err and err.count("\n") == 1
    assert files(run) == before


def waiting(world, workdir) -> list[str]:
    """The command of two rounds without an arbiter, each of which trains the base policy."""
    more = ("--config.arbiter.kind=", "--config.rounds.start=base", "--rounds=2")
    return command(world, workdir, *more)


def test_without_an_arbiter_it_waits_for_verdicts(world, tmp_path, capsys):
    """It explores, says what to do, and ends well: nothing is judged or trained."""
    assert cli.main(waiting(world, tmp_path)) == 0
    assert f"srpo judge --workdir={tmp_path / 'round-1'}" in capsys.readouterr().out
    assert len(read_shards(tmp_path / "round-1" / "trees")) == 5
    assert [each["stage"] for each in rounds_of(tmp_path)] == ["explore"]
    assert not (tmp_path / "round-1" / "checkpoints").exists()


@pytest.mark.slow  # a training
def test_with_verdicts_from_elsewhere_it_goes_on(world, tmp_path, capsys):
    """To the next round's branches, which the trained policy samples; training there would begin at
    the base policy again."""
    argv = waiting(world, tmp_path)
    assert cli.main(argv) == 0
    file = f"--config={world / 'mine.py'}"
    assert cli.main(["judge", file, f"--workdir={tmp_path / 'round-1'}"]) == 0
    capsys.readouterr()
    assert cli.main(argv) == 0
    second = tmp_path / "round-2"
    assert f"srpo judge --workdir={second}" in capsys.readouterr().out
    assert (tmp_path / "round-1" / "eval" / "after" / "answers.json").is_file()
    assert sampled_by(second) == {policy_digest(tmp_path / "round-1" / "export")}
    overrides = [word for word in argv if word.startswith("--config.")]
    config = load_config(str(world / "mine.py"), overrides, ("arbiter.kind",))
    each = Round.of(config, tmp_path, 2)
    assert each.training.model.path == str(world / "model") != each.exploring.model.path


def killed_everywhere(world, out, stages: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a run that was killed in the middle and at the end of each stage, and of one
    that was not.
    """
    argv = [sys.executable, "-m", "tests.support.rounds_run", stages, world / "mine.py", out]
    subprocess.run(argv, check=True, cwd=ROOT)
    return files(out / "killed"), files(out / "whole")


def test_killed_at_every_stage_it_ends_with_the_same_bytes(world, tmp_path):
    """SIGKILL in the middle of each stage and at its end, before that is recorded, in both rounds:
    what is left is what an uninterrupted run leaves, and no stage that ended is done again."""
    found, wanted = killed_everywhere(world, tmp_path, "stand-in")
    done, once = (Counter(each.pop("done.txt").decode().splitlines()) for each in (found, wanted))
    assert found == wanted and len(wanted) == 11
    assert set(once.values()) == {1} and len(once) == 10
    assert set(done.values()) == {3} and done.keys() == once.keys()  # killed twice, then done


@pytest.mark.slow
def test_real_stages_killed_at_every_stage(world, tmp_path):
    """The same with what the verbs do; times and the inner files of checkpoints apart."""
    found, wanted = killed_everywhere(world, tmp_path, "real")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert any(name.startswith("round-2/export/") for name in wanted)
