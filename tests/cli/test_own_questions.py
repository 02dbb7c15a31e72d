"""Questions over photographs, judged by a served chat model, by the command line alone.

The policy is the demo's, which writes paths and replies to any picture; the judge is the stub of an
OpenAI-compatible server. What is measured is the road, not the policy.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set, set_names
from tests.support.chat_stub import ChatStub
from tests.support.photos import photos

CONFIG = """
from srpo_jax.configs import common, ssui_mini


def get_config():
    config = common.get_config()
    config.name = "own questions"
    config.model.path = ssui_mini.get_config().model.path
    config.data.train_records = {records!r}
    config.data.test_records = {records!r}
    config.format.kind = {form!r}
    config.prompt.instruction = "none"  # the policy has learned to answer bare questions
    config.explore.update(branches=3, batch=6, shards=2, max_new_tokens=112)
    config.arbiter.kind = "prompted"
    config.judge.model = "judge-a"
    config.judge.retries = 0
    config.pack.rows = 2
    config.train.update(steps=2, learning_rate=1e-4, warmup_steps=0)
    config.eval.update(num_questions=4, batch=4, max_new_tokens=112)
    return config.lock()
"""
TASTES = {"a": "^Sure", "b": "^Sorry"}  # what the two judges take for harmful in a reply


def srpo(verb: str, *argv: object) -> int:
    return cli.main([*verb.split(), *map(str, argv)])


def write_config(folder: pathlib.Path, records: pathlib.Path, form: str = "lines") -> str:
    """`--config=` of a config file of one's own for these records, in `folder`."""
    file = folder / f"{form}.py"
    file.write_text(CONFIG.format(records=str(records), form=form))
    return f"--config={file}"


@dataclasses.dataclass
class Walk:
    """A road that was walked: the config of the command lines, the folder of the runs (a and b,
    named by their judges), its photographs' records, and how many calls a dry run made.
    """

    config: str
    folder: pathlib.Path
    records: list[Record]
    asked_by_dry_run: int

    @property
    def trees(self) -> pathlib.Path:
        return self.folder / "a" / "trees"


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """One exploration, judged by two judges, trained on the verdicts of each; the first run is
    evaluated, its answers judged, exported and reported. Then the servers stop."""
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("own")
    jsonl = photos.write_short_paths(folder / "photos")
    config = write_config(folder, jsonl)
    a, b = f"--workdir={folder / 'a'}", f"--workdir={folder / 'b'}"
    with ChatStub(harmful=TASTES["a"]) as first, ChatStub(harmful=TASTES["b"]) as second:
        by_a = f"--config.judge.base_url={first.url}"
        by_b = [f"--config.judge.base_url={second.url}", "--config.judge.model=judge-b"]
        by_b += ["--config.judge.rubric=path_safety,effectiveness"]
        assert srpo("explore", config, a) == 0
        assert srpo("judge", config, a, by_a, "--dry_run") == 0
        walked = Walk(config, folder, read_records(jsonl), first.calls)
        assert srpo("judge", config, a, by_a, "--name=a") == 0
        assert srpo("judge", config, a, *by_b, "--name=b") == 0
        assert srpo("train", config, a, "--config.arbiter.verdicts=a") == 0
        elsewhere = f"--config.data.trees={walked.trees}"
        assert srpo("train", config, b, elsewhere, "--config.arbiter.verdicts=b") == 0
        assert srpo("eval", config, a, "--name=after") == 0
        assert srpo("judge", config, a, by_a, "--answers=after") == 0
    assert srpo("export", a) == 0 and srpo("export", b) == 0
    assert srpo("report", folder / "a") == 0
    return walked


def verdict_files(workdir: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workdir / "verdicts" / "a").glob("*.jsonl*")}


def test_what_the_walk_leaves_names_its_judge(walk):
    """Both verdicts are among the branches of a question, by what the reply says; scores, model
    card and report name the judge by model, rubric and digest, and the card the pairs."""
    run = walk.folder / "a"
    verdicts = find_set(walk.trees, "a")
    trees = list(JudgedTrees(read_shards(walk.trees), verdicts, complete=True))
    assert len(trees) == len(walk.records) == 6
    mixed = 0
    for tree in trees:
        told: dict[int, set] = {branch["at"]: set() for branch in tree["branches"]}
        for branch in tree["branches"]:
            told[branch["at"]].add(branch["reply_verdict"])
        mixed += any({"SAFE", "UNSAFE"} <= point for point in told.values())
        for branch in tree["branches"]:
            if branch["reply_verdict"] != "ERROR":
                harmful = branch["reply_text"].startswith("Sure")
                assert branch["reply_verdict"] == ("UNSAFE" if harmful else "SAFE")
    assert mixed
    assert walk.asked_by_dry_run == 0
    digest = verdicts.judge["digest"]
    scores = json.loads((run / "eval" / "after" / "scores.json").read_text())
    assert scores["n"] == 4 and scores["error_rate"] == 0
    assert scores["judge"]["digest"] == digest and scores["judge"]["spec"]["model"] == "judge-a"
    assert [rubric["name"] for rubric in scores["judge"]["spec"]["rubrics"]] == ["reply_safety"]
    summary = json.loads((verdicts.folder / "summary.json").read_text())
    card = (run / "export" / "README.md").read_text()
    pairs = summary["questions_with_pair"]
    assert f"6 questions, {pairs} of them with a pair" in card and pairs >= mixed > 0
    for name, said in (("judge", verdicts.judge["arbiter"]), ("digest", digest)):
        assert f"* {name}: `{said}`" in card
    assert "* model: `judge-a`" in card and "* rubrics: `reply_safety (" in card
    page = (run / "report.html").read_text()
    assert "judge-a-reply_safety" in page and "data:image/jpeg;base64," in page


def test_two_judges_make_two_trainings_of_one_exploration(walk):
    """Each training has the verdicts of the judge that it names, so the same branches give other
    parameters, and each model card names its own judge."""
    a, b = (find_set(walk.trees, name).judge for name in "ab")
    assert a["digest"] != b["digest"]
    one, other = (load_file(walk.folder / n / "export" / "model.safetensors") for n in "ab")
    assert one.keys() == other.keys()
    assert any(np.any(one[name] != other[name]) for name in one)
    cards = [(walk.folder / name / "export" / "README.md").read_text() for name in "ab"]
    assert a["digest"] in cards[0] and b["digest"] not in cards[0]
    assert b["digest"] in cards[1] and a["digest"] not in cards[1]


def test_without_a_server_the_cache_repeats_the_verdicts(walk, tmp_path):
    """Trees and raw replies in another workdir, no server: every verdict is there again, byte for
    byte. What was never asked is no verdict but exit code 1."""
    for name in ("trees", "replies"):
        shutil.copytree(walk.folder / "a" / name, tmp_path / name)
    workdir = f"--workdir={tmp_path}"
    assert srpo("judge", walk.config, workdir, "--name=a", "--cache=readonly") == 0
    again, before = verdict_files(tmp_path), verdict_files(walk.folder / "a")
    assert again == before and len(before) == 4
    other = "--config.judge.model=never-asked"
    assert srpo("judge", walk.config, workdir, other, "--cache=readonly") == 1


WRONG = [
    (["train"], "there are 2 sets of verdicts", 2),
    (["train", "--config.arbiter.verdicts=c"], "no verdicts 'c' beside", 2),
    (["judge", "--name=a", "--config.judge.model=other"], "the verdicts of another judge", 2),
    (["judge", "--name=c", "--config.arbiter.scope=path"], "judges no paths", 2),
    (["judge", "--answers=before"], "run `srpo eval --name=before` first", 2),
    (["judge", "--config.judge.base_url=http://127.0.0.1:9/v1", "--config.judge.model=c"], ":9", 1),
]


@pytest.mark.parametrize("argv, said, code", WRONG, ids=[said for _, said, _ in WRONG])
def test_a_stage_that_cannot_go_on_says_why(walk, capsys, argv, said, code):
    """One line on stderr, 2 for a mistake and 1 for a server that is not there; and a judge that
    could not be asked leaves no set that training would take for one."""
    verb, *options = argv
    assert srpo(verb, walk.config, f"--workdir={walk.folder / 'a'}", *options) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"srpo {verb}: error: ") and said in line
    assert set_names(walk.trees) == ["a", "b"]


def with_unsafe_twins(records: list[Record]) -> list[Record]:
    """The records, and for each that has an unsafe reply another whose path leads to it."""
    found = list(records)
    for record in records:
        if record.unsafe_reply:
            steps = (*record.steps[:-1], "Plan: help with it.")
            twin = {"id": f"{record.id}-unsafe", "steps": steps, "reply": record.unsafe_reply}
            found.append(dataclasses.replace(record, unsafe_reply=None, **twin))
    return found


@pytest.mark.slow
def test_the_road_with_think_tags_after_a_warm_up(tmp_path):
    """A policy that writes no think tags learns them from reference paths, as docs/pilot.md says;
    its own branches are then read, judged and trained on, and the export is scored."""
    pytest.importorskip("skimage")
    jsonl = photos.write_short_paths(tmp_path / "photos")
    twins = jsonl.with_name("twins.jsonl")
    write_records(with_unsafe_twins(read_records(jsonl)), twins)
    config = write_config(tmp_path, jsonl, "think")
    warm, run = f"--workdir={tmp_path / 'warmup'}", f"--workdir={tmp_path / 'run'}"
    on_twins = f"--config.data.train_records={twins}"
    assert srpo("explore", config, "--references", on_twins, warm) == 0
    steps = ["--config.train.steps=150", "--config.train.learning_rate=2e-3"]
    sft = ["--config.objective.lambda_exp=0", "--config.pack.rows=4", *steps]
    assert srpo("train", config, on_twins, *sft, warm) == 0
    assert srpo("export", warm) == 0
    trained = f"--config.model.path={tmp_path / 'warmup' / 'export'}"
    with ChatStub(harmful=TASTES["a"]) as stub:
        by = f"--config.judge.base_url={stub.url}"
        assert srpo("explore", config, f"--from={tmp_path / 'warmup'}", run) == 0
        assert srpo("judge", config, by, run) == 0
        assert srpo("train", config, trained, run) == 0
        assert srpo("eval", config, trained, "--name=after", run) == 0
        assert srpo("judge", config, by, "--answers=after", run) == 0
    assert srpo("export", run, "--verify") == 0
    trees = list(read_shards(tmp_path / "run" / "trees"))
    branches = [branch for tree in trees for branch in tree["branches"]]
    read = [branch for branch in branches if branch["status"] == "ok"]
    assert len(read) > len(branches) / 2
    assert all("</think>" in branch["text"] for branch in read)
    summary = find_set(tmp_path / "run" / "trees").folder / "summary.json"
    assert json.loads(summary.read_text())["questions_with_pair"]
    scores = json.loads((tmp_path / "run" / "eval" / "after" / "scores.json").read_text())
    assert scores["n"] == 4 and scores["judge"]["spec"]["model"] == "judge-a"
