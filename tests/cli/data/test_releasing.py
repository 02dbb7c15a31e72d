"""`srpo data release`: what is passed on of records and of judged trees, and what is not."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.data_pipelines.ssui_mini import dataset
from srpo_jax.data_pipelines.ssui_mini.options import Options
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.files import read_json, read_lines
from srpo_jax.models.hf.processor import Processor
from tests.support import ROOT, judged
from tests.support.photos import photos

BASE = ROOT / "data_pipelines" / "ssui_mini" / "base_policy"


def release(capsys, *argv, code=0):
    """What the command prints, on stdout or, if it fails, on stderr."""
    assert cli.main(["data", "release", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    return err if code else out


@pytest.fixture(scope="module", params=["photographs", "toy world"])
def workdir(request, tmp_path_factory) -> pathlib.Path:
    """A workdir with judged trees of the photographs, or of a part of the toy world."""
    home = tmp_path_factory.mktemp("run")
    if request.param == "photographs":
        pytest.importorskip("skimage")
        jsonl = photos.write_photos(home / "data")
    else:
        dataset.build_dataset(home / "data", Options(variants=1), ("test",))
        jsonl = home / "data" / "some.jsonl"
        write_records(read_records(home / "data" / "test.jsonl")[::3], jsonl)
    photos.write_trees(home / "trees", jsonl, Processor.from_dir(BASE))
    return home


def whole(out: pathlib.Path) -> str:
    """All texts of a release, unescaped."""
    rows = [row for name in out.glob("*.jsonl") for row in read_lines(name)]
    written = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "\n".join(
        [*written, (out / "README.md").read_text(), (out / "release.json").read_text()]
    )


def unsafe_texts(workdir: pathlib.Path) -> set[str]:
    """Every text that must not go out: unsafe replies, and what branches say besides what the
    reference paths say, too.
    """
    trees = JudgedTrees(read_shards(workdir / "trees"), find_set(workdir / "trees"), complete=True)
    found, known = set(), set()
    for tree in trees:
        known |= {*tree["step_texts"], tree["reply_text"]}
        found |= {tree["unsafe_reply"]} - {None}
        for branch in tree["branches"]:
            found |= {branch["text"], branch["reply_text"], *branch["step_texts"]}
    return {json.dumps(text, ensure_ascii=False)[1:-1] for text in found - known}


def test_no_unsafe_text_leaves_and_every_verdict_does(workdir, tmp_path, capsys):
    """Searched for every one. Hashes, verdicts, licences and the canary are there; the pictures and
    the safe paths are as they were; and nothing can be trained on it, by name.
    """
    out = tmp_path / "out"
    texts = unsafe_texts(workdir)
    assert len(texts) > 10
    said = release(capsys, workdir, out)
    assert "without unsafe replies and texts of branches" in said
    written = whole(out)
    assert [text for text in texts if text in written] == []
    trees = list(JudgedTrees(read_shards(workdir / "trees"), find_set(workdir / "trees")))
    branches = read_lines(out / "branches.jsonl")
    assert len(branches) == sum(len(tree["branches"]) for tree in trees)
    assert {row["reply_verdict"] for row in branches} == {"SAFE", "UNSAFE"}
    records = read_records(out / "records.jsonl")
    canary = read_json(out / "release.json")["canary"]
    for record, tree in zip(records, trees, strict=True):
        assert (record.question, record.reply) == (tree["question"], tree["reply_text"])
        kept = [path.read_bytes() for path in record.image_paths()]
        assert kept == [image["data"] for image in tree["images"]]
        assert ("unsafe_reply_sha256" in record.meta["release"]) == bool(tree["unsafe_reply"])
        assert record.meta["release"]["canary"] == canary
    card = (out / "README.md").read_text()
    assert canary in card and "Consent" in card
    rows = read_lines(out / "licenses.jsonl")
    assert [row["license"] for row in rows] == [tree["license"] for tree in trees]
    argv = [f"--config={ROOT}/configs/ssui_mini.py", f"--workdir={out}"]
    assert cli.main(["train", *argv]) == 2
    assert f"{out} is a release (release.json)" in capsys.readouterr().err


def test_whoever_means_it_passes_on_everything(workdir, tmp_path, capsys):
    """And the card says so."""
    said = release(capsys, workdir, tmp_path / "out", "--include_harmful")
    assert "with harmful texts" in said
    written = whole(tmp_path / "out")
    trees = list(read_shards(workdir / "trees"))
    for tree in trees:
        if tree["unsafe_reply"]:
            assert json.dumps(tree["unsafe_reply"], ensure_ascii=False) in written
    assert "It holds unsafe replies" in (tmp_path / "out" / "README.md").read_text()


def test_a_reference_path_that_was_judged_unsafe_stays_here(tmp_path, capsys):
    """Like an unsafe reply."""
    bad = judged.tree("bad", license="CC0", reference_verdict=judged.verdict("UNSAFE"))
    good = judged.tree("good", license="CC0", reference_verdict=judged.verdict("SAFE"))
    judged.write_judged(tmp_path / "trees", [bad, good])
    release(capsys, tmp_path, tmp_path / "out")
    first, second = read_records(tmp_path / "out" / "records.jsonl")
    assert not first.has_reference and "reference_sha256" in first.meta["release"]
    assert second.has_reference and "reference_sha256" not in second.meta["release"]


GOOD = Record("r", (), "What?", ("I look.",), "No.", license="CC-BY-SA-4.0", source="mine")
WRONG = [
    ({"license": ""}, "licence unknown", "unknown"),
    ({"license": "CC-BY-NC-4.0"}, "no commercial use", "CC-BY-NC-4.0"),
    ({"license": "CC BY-ND 4.0"}, "nothing made of it may be passed on", "CC BY-ND 4.0"),
    ({"license": "research only"}, "research only", "research only"),
    ({"license": "gated"}, "its terms", "gated"),
    ({"source": "kzhou35/mssbench"}, "a set to test on", "kzhou35/mssbench"),
    ({"meta": {"format": "siuo"}}, "source siuo", "siuo"),
]


@pytest.mark.parametrize("change, said, allow", WRONG, ids=[said for _, said, _ in WRONG])
def test_what_must_not_be_passed_on_is_refused_unless_told(tmp_path, capsys, change, said, allow):
    """By name of a record, before anything is written; share alike may go out."""
    write_records([GOOD, dataclasses.replace(GOOD, id="s", **change)], tmp_path / "records.jsonl")
    line = release(capsys, tmp_path, tmp_path / "out", code=2)
    assert said in line and "'s' for one" in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()
    release(capsys, tmp_path, tmp_path / "out", f"--allow={allow}")
    assert len(read_records(tmp_path / "out" / "records.jsonl")) == 2


def test_minors_are_refused_whatever_is_allowed(tmp_path, capsys):
    bad = dataclasses.replace(GOOD, id="s", unsafe_reply="A child, naked.")
    write_records([GOOD, bad], tmp_path / "records.jsonl")
    line = release(
        capsys, tmp_path, tmp_path / "out", "--allow=unknown", "--include_harmful", code=2
    )
    assert "record 's': sexual matter and minors: refused" in line
    assert not (tmp_path / "out").exists()


def test_texts_of_models_in_meta_stay_here(tmp_path, capsys):
    """Of meta only what the program itself wrote goes out."""
    meta = {
        "construct": {"stages": "ssui", "unsafe_event": "SECRET"},
        "source_fields": {"x": "SECRET"},
    }
    write_records([dataclasses.replace(GOOD, meta=meta)], tmp_path / "records.jsonl")
    release(capsys, tmp_path, tmp_path / "out")
    assert "SECRET" not in whole(tmp_path / "out") and '"stages": "ssui"' in whole(tmp_path / "out")
