"""Bad input through the command line: one line on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
from PIL import Image

from srpo_jax.cli import main as cli
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.explore import explore as exploration
from srpo_jax.judge import stage
from srpo_jax.train import dry_run, loop
from tests.support import ROOT
from tests.support.judged import tree, write_trees
from tests.support.tiny import tiny_qwen2_5_vl

CONFIG = ROOT / "configs" / "photos.py"


def record(**changes) -> dict:
    good = {
        "id": "a",
        "images": ["a.png"],
        "question": "What is this?",
        "reference": {"steps": ["Look at it.", "Think."], "reply": "A square."},
    }
    return {**good, **changes}


@pytest.fixture
def world(tmp_path):
    """A checkpoint, one good picture, and a workdir that does not exist yet."""
    tiny_qwen2_5_vl(tmp_path / "model")
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def files(folder: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(world, capfd, verb="explore", *more: str, rows=None) -> tuple[int, list[str]]:
    """(exit code, lines on stderr) of one command on these rows of train.jsonl."""
    lines = [json.dumps(row) for row in (rows or [record()])]
    (world / "train.jsonl").write_text("\n".join(lines) + "\n")
    args = [
        verb,
        f"--config={CONFIG}",
        f"--workdir={world / 'run'}",
        f"--config.model.path={world / 'model'}",
        f"--config.data.train_records={world / 'train.jsonl'}",
        f"--config.data.test_records={world / 'train.jsonl'}",
        "--config.arbiter.kind=ssui_mini",
        "--config.explore.max_new_tokens=2",
        "--config.explore.branches=1",
        *more,
    ]
    capfd.readouterr()
    code = cli.main(args)
    return code, capfd.readouterr().err.splitlines()


BAD_RECORDS = {
    "missing image": (record(images=["b.png"]), "b.png"),
    "image that is no image": (record(images=["text.png"]), "text.png"),
    "image outside the folder": (record(images=["../a.png"]), "../a.png"),
    "image count against placeholders": (record(question="<image> and <image>?"), "<image>"),
    "no steps": (record(reference={"steps": [], "reply": "A square."}), "steps"),
    "an empty step": (record(reference={"steps": ["Look.", ""], "reply": "A square."}), "step"),
    "an empty reply": (record(reference={"steps": ["Look."], "reply": " "}), "reply"),
    "unknown field": (record(quesiton="?"), "quesiton"),
    "wrong type": (record(images="a.png"), "images"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
@pytest.mark.parametrize("verb", ["explore", "eval"])
def test_bad_record(world, capfd, name, verb):
    """The record is named with file or id and the reason; no file appears in the workdir."""
    row, word = BAD_RECORDS[name]
    code, said = run(world, capfd, verb, rows=[row])
    assert code == 2 and len(said) == 1, said
    assert word in said[0] and ("train.jsonl" in said[0] or "'a'" in said[0])
    assert not (world / "run").exists() or files(world / "run") == []


def test_duplicate_id(world, capfd):
    """Both places of an id are one error."""
    code, said = run(world, capfd, rows=[record(), record()])
    assert (
        code == 2 and len(said) == 1 and "'a'" in said[0] and ":2" in said[0].replace("line ", ":")
    )


@pytest.mark.parametrize(
    "more, word",
    [
        (["--config.explore.branchs=2"], "branches"),
        (["--config.explore.branches=two"], "branches"),
        (["--config.train.learning_rate=nan"], "learning_rate"),
        (["config.train.steps=3"], "--config.train.steps"),
    ],
)
def test_bad_config(world, capfd, more, word):
    """A typo, a wrong type, nan and a missing `--` are named, with what was probably meant."""
    code, said = run(world, capfd, "train", *more)
    assert code == 2 and len(said) == 1 and word in said[0], said
    assert not (world / "run").exists()


def test_what_cannot_be_judged_or_trained_on(world, capfd):
    """No trees, no verdicts, no arbiter of that name, a folder for a name, a workdir that is not
    there: one line each, and nothing is written.
    """
    code, said = run(world, capfd, "judge")
    assert code == 2 and len(said) == 1 and "does not exist" in said[0], said
    (world / "run").mkdir()
    for more, words in (
        ((), "no trees to judge; run `srpo explore` first"),
        (("--answers=x",), "no answers; run `srpo eval --name=x` first"),
    ):
        code, said = run(world, capfd, "judge", *more)
        assert code == 2 and len(said) == 1 and words in said[0], said
    assert files(world / "run") == []
    write_trees(world / "run" / "trees", [tree()])
    before = files(world / "run")
    for more, words in (
        (("--name=a/b",), "must be a plain folder name"),
        (("--config.arbiter.kind=nobody",), "arbiter.kind='nobody' does not exist; kinds: "),
    ):
        code, said = run(world, capfd, "judge", *more)
        assert code == 2 and len(said) == 1 and words in said[0], said
    code, said = run(world, capfd, "train")
    assert code == 2 and len(said) == 1 and "not judged yet: run `srpo judge` first" in said[0]
    assert files(world / "run") == before


def test_an_unknown_arbiter_is_told_before_sampling(world, capfd):
    """A typing mistake in a name would else show up when hours of branches are to be judged."""
    code, said = run(world, capfd, "explore", "--config.arbiter.kind=promted")
    assert code == 2 and len(said) == 1 and "did you mean prompted?" in said[0], said
    assert not (world / "run").exists()


def test_an_unknown_arbiter_is_told_before_answering(world, capfd, monkeypatch):
    """The answers of an evaluation are for it, too."""
    monkeypatch.setattr(evaluation, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    code, said = run(world, capfd, "eval", "--config.arbiter.kind=promted")
    assert code == 2 and len(said) == 1 and "did you mean prompted?" in said[0], said
    assert not (world / "run").exists()


@pytest.mark.parametrize(
    "verb, more, place",
    [
        ("eval", (), "eval"),
        ("eval", ("--name=x",), "eval/x"),
        ("explore", (), "trees"),
        ("explore", (), "trees.claims"),
        ("explore", ("--config.explore.reference=self",), "roots"),
        ("explore", ("--config.explore.reference=self",), "roots.claims"),
        ("judge", (), "replies"),
        ("judge", (), "verdicts"),
        ("train", (), "checkpoints"),
        ("train", ("--dry_run",), "checkpoints"),
        ("train", ("--profile",), "profile"),
    ],
)
def test_a_file_where_a_folder_will_be_is_told_first(world, capfd, monkeypatch, verb, more, place):
    """Not when the hours that were to fill it are over: before any weights are read."""
    for module in (evaluation, exploration):
        monkeypatch.setattr(module, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    for module in (loop, dry_run):
        monkeypatch.setattr(module, "make_setup", lambda *_, **__: pytest.fail("set up"))
    monkeypatch.setattr(stage, "judge_shard", lambda *_, **__: pytest.fail("judged"))
    if verb in ("judge", "train"):
        write_trees(world / "run" / "trees", [tree("a")])
    (world / "run" / place).parent.mkdir(parents=True, exist_ok=True)
    (world / "run" / place).write_text("a file")
    before = files(world / "run")
    code, said = run(world, capfd, verb, *more)
    assert code == 2 and len(said) == 1 and f"run/{place} is a file" in said[0], said
    assert [name for name in files(world / "run") if name != "events.jsonl"] == before


def without_weights(model):
    for file in model.glob("*.safetensors"):
        file.unlink()


def pickled_weights(model):
    without_weights(model)
    (model / "pytorch_model.bin").write_bytes(b"x")


def index_outside(model):
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    without_weights(model)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "damage, word",
    [
        (without_weights, "safetensors"),
        (pickled_weights, "safetensors"),
        (index_outside, "../outside.safetensors"),
        (shutil.rmtree, "config.json"),
    ],
)
def test_bad_checkpoint(world, capfd, damage, word):
    """A directory without weights, with pickles, or whose index leaves the folder, is refused."""
    damage(world / "model")
    code, said = run(world, capfd)
    assert code == 2 and len(said) == 1 and word in said[0], said
    assert not (world / "run").exists() or files(world / "run") == []


def test_workdir_of_another_run(world, capfd):
    """Explore with another seed into a finished workdir is refused, and its files stay the same."""
    code, said = run(world, capfd)
    assert code == 0, said
    before = {name: (world / "run" / name).read_bytes() for name in files(world / "run")}
    code, said = run(world, capfd, "explore", "--config.seed=1")
    assert code == 2 and len(said) == 1 and "seed" in said[0], said
    assert before == {name: (world / "run" / name).read_bytes() for name in files(world / "run")}
