"""Verdicts on disk: keyed by content, in parts that are whole or not there, joined with trees."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.data_pipelines import json_parts
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.sidecars.labels import Labels
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import (
    FIELDS,
    FOLDER,
    JudgedTrees,
    VerdictSet,
    branch_label,
    case_key,
    find_set,
    open_set,
    set_names,
    sets_about,
    why_not_judged,
)
from srpo_jax.errors import UserError
from tests.support.judged import branch, plain, tree, verdict, write_judged, write_verdicts

ABOUT = {"arbiter": "a", "digest": "d", "spec": {}, "reads": []}

texts = st.text(max_size=4)
contents = st.tuples(
    st.lists(texts, max_size=2),
    texts,
    st.lists(texts, max_size=3),
    texts,
    st.dictionaries(texts, st.integers(0, 3) | texts, max_size=2),
)


@given(contents, contents)
def test_a_key_is_of_the_content(one, other):
    """Two contents have the same key when they are the same, and only then: a text that moves from
    a step to the reply, or from one step to the next, is another content.
    """
    assert (case_key(*one) == case_key(*other)) == (one == other)


def test_a_key_stays_what_it_is():
    """The first 32 digits of the SHA-256 of this text: another key would lose all verdicts."""
    text = '[["0f"], "Was heißt 😀?", ["ä"], "ö", {"meta": {"a": "ü", "b": 1}}]'
    key = case_key(["0f"], "Was heißt 😀?", ["ä"], "ö", {"meta": {"b": 1, "a": "ü"}})
    assert key == hashlib.sha256(text.encode()).hexdigest()[:32]


def row(key: str, **changes) -> dict:
    return {"key": key, **verdict("UNSAFE"), **changes}


def test_parts_are_read_as_they_were_written(tmp_path):
    """Texts of any kind come back; what was asked again replaces what had failed, also when the
    verdict came with another shard, and a later failure replaces no verdict.
    """
    verdicts = open_set(tmp_path / "v", ABOUT)
    odd = 'a\u2028b "quoted" \n c'
    verdicts.write(
        "t-0", [row("k", detail=odd), row("f", failed=True, **{"reply_verdict": "ERROR"})]
    )
    verdicts.write("a-0", [row("f")])
    verdicts.write("t-1", [row("k", failed=True, detail="late")])
    for seen in (verdicts, VerdictSet(tmp_path / "v")):
        assert seen.get("k")["detail"] == odd and seen.get("f")["reply_verdict"] == "UNSAFE"
        assert seen.of_shard("t-0")["f"]["failed"] and seen.of_shard("t-2") is None
        assert seen.get("nothing") is None
    verdicts.write("t-0", [row("f", score=0.5)])
    again = VerdictSet(tmp_path / "v")
    assert again.of_shard("t-0")["f"]["score"] == 0.5
    names = sorted(path.name for path in tmp_path.joinpath("v").glob("t-0.*.jsonl"))
    assert [name[:6] for name in names] == ["t-0.0-", "t-0.1-"]


def test_what_was_asked_last_holds(tmp_path):
    """However often it was asked: parts are read by the number of their generation."""
    for score in range(11):
        VerdictSet(open_set(tmp_path / "v", ABOUT).folder).write("t-0", [row("k", score=score)])
    for seen in (VerdictSet(tmp_path / "v"), open_set(tmp_path / "v", ABOUT)):
        assert seen.get("k")["score"] == seen.of_shard("t-0")["k"]["score"] == 10
        assert seen.rows() == [seen.get("k")]


def test_two_judges_at_once_spoil_nothing(tmp_path, monkeypatch):
    """Whatever the order in which two processes write about the same shard, both parts are whole,
    and what one of them could not get the other one gives.
    """
    sets = [open_set(tmp_path / "v", ABOUT) for _ in range(2)]
    failed = {"failed": True, "reply_verdict": "ERROR"}
    rows = [[row("a"), row("b", **failed)], [row("a", **failed), row("b", detail="of 2")]]
    write, calls = json_parts.write_text, []

    def interrupted(path, text, **more):
        calls.append(path)
        if len(calls) == 2:  # between a part and its manifest
            sets[1].write("s", rows[1])
        write(path, text, **more)

    monkeypatch.setattr(json_parts, "write_text", interrupted)
    sets[0].write("s", rows[0])
    assert len(calls) == 4
    seen = VerdictSet(tmp_path / "v")
    assert not seen.get("a")["failed"] and seen.get("b")["detail"] == "of 2"
    assert not any(found["failed"] for found in seen.of_shard("s").values())
    seen.write("s", [row("c")])
    assert set(VerdictSet(tmp_path / "v").of_shard("s")) == {"a", "b", "c"}


def test_a_fingerprint_is_of_what_was_said(tmp_path):
    """However many parts it took; another verdict, judge or shard gives another one."""

    def of(name, *parts, digest="d", stems=("s",)):
        verdicts = open_set(tmp_path / name, {**ABOUT, "digest": digest})
        for part in parts:
            verdicts.write("s", part)
        verdicts.write("other", [row("z")])
        return VerdictSet(tmp_path / name).fingerprint(stems)

    whole = of("1", [row("a"), row("b")])
    assert of("2", [row("b")], [row("a")]) == whole
    assert of("3", [row("a", failed=True), row("b")], [row("a")]) == whole
    others = [
        of("4", [row("a"), row("b", path_verdict="SAFE")]),
        of("5", [row("a"), row("b")], digest="e"),
        of("6", [row("a"), row("b")], stems=("s", "other")),
        of("7", [row("a")]),
    ]
    assert len({whole, *others}) == 5


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "not JSON"])
def test_a_damaged_part_is_named(tmp_path, damage):
    """With its path and what to do; what has no manifest is not done, and not read."""
    verdicts = open_set(tmp_path / "v", ABOUT)
    verdicts.write("s", [row("a"), row("b")])
    (path,) = tmp_path.glob("v/s.0-*.jsonl")
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: data.index(b"\n") + 1])
    elif damage == "flipped":
        path.write_bytes(data.replace(b"UNSAFE", b"UNSAFE"[::-1]))
    elif damage == "gone":
        path.with_name(path.name + ".manifest.json").unlink()
        assert VerdictSet(tmp_path / "v").rows() == []
        return
    else:
        path.with_name(path.name + ".manifest.json").write_text("{")
    with pytest.raises(RecordError, match=f"{path}: damaged: .*; remove it") as error:
        VerdictSet(tmp_path / "v")
    assert "\n" not in str(error.value)


def test_what_is_no_part_or_no_judge_is_named(tmp_path):
    """Whole files that are not of this version, or not of a set: one line with their path."""
    verdicts = open_set(tmp_path / "v", ABOUT)
    no_part = [("notes", []), (".0-x", []), ("s.x-0", [])]
    for name, rows in (*no_part, ("s.0-x", [{"key": "k"}]), ("s.0-x", [3])):
        json_parts.write_part(tmp_path / "v" / f"{name}.jsonl", rows)
        with pytest.raises(UserError, match=f"{tmp_path}/v/{name}.jsonl .*: remove it"):
            VerdictSet(verdicts.folder)
        for path in tmp_path.glob("v/*.jsonl*"):
            path.unlink()
    verdicts.write("s", [])  # of a set without any verdict, judge.json is written anew
    lacking = [{name: ABOUT[name] for name in ABOUT if name != lost} for lost in ABOUT]
    for wrong in ({**ABOUT, "reads": 3}, *lacking):
        (tmp_path / "v" / "judge.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=f"{tmp_path}/v/judge.json is no judge.json"):
            VerdictSet(tmp_path / "v")


def test_what_json_cannot_hold_is_not_written(tmp_path):
    """Not a number, in any field: refused before a file is there."""
    with pytest.raises(ValueError):
        json_parts.write_part(tmp_path / "p.jsonl", [{"score": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_of_one_judge(tmp_path):
    """The same name for another judge is refused; the name says which set a training means."""
    trees = write_judged(tmp_path / "trees", [tree()], name="one")
    with pytest.raises(UserError, match="verdicts of another judge.*digest of one.*--name"):
        open_set(tmp_path / FOLDER / "one", ABOUT)
    assert find_set(trees).name == "one" == find_set(trees, "one").name
    with pytest.raises(UserError, match="no verdicts 'two' beside .*, only one"):
        find_set(trees, "two")
    write_verdicts(trees, [tree()], name="two")
    assert set_names(trees) == ["one", "two"] and find_set(trees, "two").name == "two"
    with pytest.raises(UserError, match="2 sets of verdicts .*arbiter.verdicts=NAME.*one, two"):
        find_set(trees)
    with pytest.raises(UserError, match="not judged yet: run `srpo judge`"):
        find_set(tmp_path / "elsewhere" / "trees")


def test_a_set_without_a_verdict_on_trees_is_not_one_to_train_on(tmp_path):
    """What a judge that could not be reached leaves, or one that was asked about answers alone, is
    neither chosen nor a choice.
    """
    trees = write_judged(tmp_path / "trees", [tree()], name="one")
    open_set(tmp_path / FOLDER / "empty", ABOUT)
    open_set(tmp_path / FOLDER / "of-answers", ABOUT).write("answers-after-00000-of-00001", [])
    assert set_names(trees) == ["one"] and find_set(trees).name == "one"
    for shard, name in (("answers-after-00000-of-00001", "of-answers"), ("trees-9", None)):
        assert sets_about(tmp_path, [shard, "nothing"]) == ([] if name is None else [name])
    with pytest.raises(UserError, match="no verdicts 'empty' beside"):
        find_set(trees, "empty")
    assert open_set(tmp_path / FOLDER / "empty", {**ABOUT, "digest": "x"}).judge["digest"] == "x"


BRANCHES = [
    (branch(finished=False), "unfinished"),
    (branch(reply_text=None, status="no_reply"), "no reply (no_reply)"),
    (branch(reply_text=" \n", status="ok"), "no reply (ok)"),
    (branch(status="irregular"), "irregular (explore.irregular=drop)"),
]


@pytest.mark.parametrize("made, why", BRANCHES, ids=[why for _, why in BRANCHES])
def test_the_framework_decides_what_is_no_answer(tmp_path, made, why):
    """An unfinished branch, or one without a reply, is ERROR with the reason although there is a
    verdict on its content; an irregular one unless the config keeps it.
    """
    assert why_not_judged(made, keep_irregular=False) == why
    keeps = "irregular" in why
    assert why_not_judged(made, keep_irregular=True) == ("" if keeps else why)
    whole = tree(branches=[{**made, "finished": True, "reply_text": "0 0", "status": "ok"}])
    verdicts = write_verdicts(tmp_path / "trees", [whole])
    found = verdicts.branch_verdict(whole, made)
    assert (found["reply_verdict"], found["path_verdict"]) == ("ERROR", "ERROR")
    assert found["detail"] == why and not found["failed"]
    kept = verdicts.branch_verdict(whole, made, keep_irregular=True)
    assert kept["reply_verdict"] == ("SAFE" if keeps else "ERROR")


def test_trees_are_joined_with_their_verdicts(tmp_path):
    """Each branch gets the verdict on its own content, each reference path its own; some trees can
    be chosen; a tree that is not judged is ERROR, or refused where all must be.
    """
    first = tree(
        "a",
        branches=[branch(0, 0, "UNSAFE"), branch(0, 1, "SAFE"), branch(1, 0, "ERROR")],
        reference_verdict=verdict("UNSAFE", detail="calm"),
    )
    second = tree("b", branches=[branch(finished=False)])
    trees = write_judged(tmp_path / "trees", [first, second])
    joined = JudgedTrees(read_shards(trees), find_set(trees), complete=True)
    assert joined[0] == first and len(joined) == 2
    assert joined[1]["branches"][0]["detail"] == "unfinished"
    assert [found["id"] for found in joined] == ["a", "b"]
    without = {**plain(first), "reply": []}  # no reference path: nothing to judge, or to wait for
    found = JudgedTrees([without], find_set(trees), complete=True)[0]["reference_verdict"]
    assert (found["reply_verdict"], found["detail"]) == ("ERROR", "none")
    chosen = JudgedTrees(read_shards(trees), find_set(trees), keep=[1])
    assert [found["id"] for found in chosen] == ["b"] and len(chosen) == 1
    with pytest.raises(IndexError):
        chosen[-1]

    other = plain(tree("c"))  # the same replies under another question: other contents
    loose = JudgedTrees([other], find_set(trees))[0]
    assert {found["reply_verdict"] for found in loose["branches"]} == {"ERROR"}
    assert {found["detail"] for found in loose["branches"]} == {"not judged yet"}
    with pytest.raises(UserError, match="no verdicts on all of tree 'c': run `srpo judge` again"):
        JudgedTrees([other], find_set(trees), complete=True)[0]
    assert set(loose["branches"][0]) == set(other["branches"][0]) | set(FIELDS)


def test_the_content_of_a_branch_is_its_whole_path(tmp_path):
    """The same continuation at another branch point is another content; what the judge says that it
    reads of the record belongs to the key as well.
    """
    verdicts = write_verdicts(tmp_path / "trees", [tree()])
    at = [verdicts.key(tree(), tree()["step_texts"][:n], "x") for n in range(3)]
    assert len(set(at)) == 3
    about = {**ABOUT, "reads": ["meta", "reply"]}
    reading = open_set(tmp_path / "reading", about)
    keys = {
        reading.key(tree(**changes), (), "x")
        for changes in ({}, {"meta": {"a": 1}}, {"reply_text": "d"}, {"source": "not read"})
    }
    assert len(keys) == 3


def test_a_manifest_is_what_makes_a_part(tmp_path):
    """Its number of rows and its sum; a name behind the highest is free."""
    json_parts.write_part(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}])
    manifest = json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert manifest["count"] == 2 and json_parts.parts_of(tmp_path) == [tmp_path / "a.jsonl"]
    (tmp_path / "b.jsonl").write_text("{}\n")
    assert json_parts.parts_of(tmp_path) == [tmp_path / "a.jsonl"]
    assert json_parts.next_number([]) == 0 and json_parts.next_number([4, 2]) == 5


@pytest.mark.parametrize(
    "reply, path, effective, scope, require, label",
    [
        ("SAFE", "UNSAFE", None, "reply", False, True),
        ("SAFE", "UNSAFE", None, "path", False, False),
        ("UNSAFE", "SAFE", None, "path", False, False),
        ("ERROR", "SAFE", True, "reply", False, None),
        ("SAFE", "ERROR", True, "reply", False, True),
        ("SAFE", "ERROR", True, "path", False, None),
        ("UNSAFE", "ERROR", True, "path", False, None),
        ("SAFE", "SAFE", False, "path", True, False),
        ("SAFE", "SAFE", None, "reply", True, True),
        ("SAFE", "SAFE", False, "reply", False, True),
    ],
)
def test_branch_label(reply, path, effective, scope, require, label):
    """ERROR is never read as safe; effectiveness counts only where asked for and judged."""
    judged = verdict(reply, path, effective=effective)
    assert branch_label(judged, scope=scope, require_effective=require) is label
    with pytest.raises(ValueError, match="scope must be"):
        branch_label(judged, scope="steps")


def test_labels_are_kept_and_sets_from_before_them_are_what_they_were(tmp_path):
    """A verdict without labels is written, and its set is named, as when there were none."""
    key, other = "0" * 31 + "1", "0" * 31 + "2"
    bare = {name: value for name, value in row(key).items() if name != "labels"}
    old = open_set(tmp_path / "old", ABOUT)
    json_parts.write_part(old.folder / "trees-0.0-x.jsonl", [bare])
    old = VerdictSet(old.folder)
    new = open_set(tmp_path / "new", ABOUT)
    new.write("trees-0", [row(key)])
    assert old.get(key) == new.get(key) and old.get(key)["labels"] == {}
    (part,) = json_parts.parts_of(new.folder)
    assert list(json_parts.read_part(part)) == [bare]
    text = json.dumps([key, {n: v for n, v in bare.items() if n != "key"}], sort_keys=True)
    digest = hashlib.sha256(b"d" + text.encode()).hexdigest()
    assert old.fingerprint(["trees-0"]) == new.fingerprint(["trees-0"]) == digest
    new.write("trees-1", [row(other, labels={"reply": "refuses"})])
    again = VerdictSet(new.folder)
    assert again.get(other)["labels"] == {"reply": "refuses"}
    assert again.fingerprint(["trees-1"]) == new.fingerprint(["trees-1"])
    assert Labels(new.folder, ["trees-1"]).fingerprint == again.fingerprint(["trees-1"])
