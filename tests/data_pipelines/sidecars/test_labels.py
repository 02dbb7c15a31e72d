"""Labels from keys and bytes are those of whole verdicts joined with whole trees."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.sidecars import case_keys, labels
from srpo_jax.data_pipelines.sidecars.case_keys import shard_keys
from srpo_jax.data_pipelines.sidecars.labels import LabelRules, Labels, shard_labels
from srpo_jax.data_pipelines.tree_store import SUFFIX, read_shard, shards_of
from srpo_jax.data_pipelines.verdict_store import VerdictSet, branch_label, join, open_set
from srpo_jax.errors import UserError
from tests.support import judged

WORDS = ("SAFE", "UNSAFE", "ERROR")


def world(folder, seed=0, reads=("category",)):
    """Three shards of trees, some of whose branches are unfinished, irregular or repeated, and a
    set with verdicts on all of them: asked in several goes, some failed, some told by another
    shard. Returns (shards, folder of the set)."""
    rng = np.random.default_rng(seed)

    def tree(i: int):
        branches = []
        for k in range(int(rng.integers(0, 7))):
            change = [
                {},
                {},
                {},
                {"finished": False},
                {"status": "irregular"},
                {"reply_text": None},
            ]
            more = change[rng.integers(len(change))]
            reply = {"reply_text": f"reply {rng.integers(4)}"} | more
            branches.append(judged.branch(int(rng.integers(2)), k, None, **reply))
        made = judged.plain(judged.tree(f"t{i % 7}", branches=branches))
        return {**made, "id": f"t{i}", "category": None if i % 2 else "violence"}

    trees = judged.write_trees(
        folder / "trees", *([tree(9 * s + i) for i in range(9)] for s in range(3))
    )
    about = {"arbiter": "a", "digest": "d", "spec": {}, "reads": list(reads)}
    verdicts = open_set(folder / "verdicts" / "a", about)
    shards = shards_of(trees)

    def row(key: str, failed: bool):
        reply, path = WORDS[rng.integers(3)], WORDS[rng.integers(3)]
        effective = (None, True, False)[rng.integers(3)]
        verdict = judged.verdict(reply, path, effective=effective, detail=f"{rng.integers(9)}")
        return {"key": key, **verdict, "failed": failed}

    for again in range(3):
        for shard in shards:
            keys = shard_keys(shard, reads, folder / "verdicts" / "a")
            known = (*keys.reference, *keys.branch[keys.state > 0])
            known = {key.ljust(16, b"\0").hex() for key in known}  # numpy cuts zeros off
            asked = [key for key in sorted(known) if not again or rng.random() < 0.3]
            rows = [row(key, rng.random() < 0.4) for key in asked]
            verdicts.write(shard.name.removesuffix(SUFFIX), rows)
    verdicts.write("answers-x-00000-of-00001", [row("ab" * 16, False)])
    return shards, verdicts.folder


def stems(shards):
    return [shard.name.removesuffix(SUFFIX) for shard in shards]


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_those_of_the_joined_trees(tmp_path, seed):
    """For every rule: of each branch and reference path the same label; the fingerprint of the set
    is the same, and so is what a key says."""
    shards, folder = world(tmp_path, seed)
    whole, found = VerdictSet(folder), Labels(folder, stems(shards))
    assert found.fingerprint == whole.fingerprint(stems(shards)) and not found.missing
    known = {"reply_verdict", "path_verdict", "effective"}
    for rules in (
        LabelRules(),
        LabelRules("path", True, False),
        LabelRules("reply", True, True),
        LabelRules("path", False, True),
    ):
        told = {"scope": rules.scope, "require_effective": rules.require_effective}
        for shard in shards:
            joined = [
                join(tree, whole, keep_irregular=rules.keep_irregular) for tree in read_shard(shard)
            ]
            branches = [branch for tree in joined for branch in tree["branches"]]
            references = [tree["reference_verdict"] for tree in joined]
            ours = shard_labels(shard_keys(shard, found.reads, folder), found, rules)
            for verdicts, said in ((branches, ours.branch), (references, ours.reference)):
                expected = [branch_label(verdict, **told) for verdict in verdicts]
                assert said.tolist() == [-1 if x is None else int(x) for x in expected]
            assert not len(ours.unknown)
            for tree in joined:
                key = whole.key(tree, tree["step_texts"], tree["reply_text"])
                one, other = whole.get(key), found.get(key)
                assert {n: one[n] for n in known} == {n: other[n] for n in known}
    assert found.get("00" * 16) is None


def test_a_later_start_reads_no_part_and_no_tree(tmp_path, monkeypatch):
    """What was worked out is found again; a new part, other fields or `anew` have it read again,
    and what is damaged is not believed."""
    shards, folder = world(tmp_path)
    Labels(folder, stems(shards))
    (kept,) = folder.glob("*.labels-*.npz")
    read = []
    part, shard = labels.iter_part, case_keys.read_shard
    monkeypatch.setattr(labels, "iter_part", lambda p: read.append(p.name) or part(p))
    monkeypatch.setattr(case_keys, "read_shard", lambda p: read.append(p.name) or shard(p))
    before = Labels(folder, stems(shards))
    for path in shards:
        shard_keys(path, before.reads, folder)
    assert read == []
    assert Labels(folder, stems(shards), anew=True).fingerprint == before.fingerprint and read
    for damage in (
        kept.read_bytes()[:-9],
        b"",
        kept.read_bytes().replace(b"\x00\x01", b"\x01\x01"),
    ):
        read.clear()
        kept.write_bytes(damage)
        assert Labels(folder, stems(shards)).fingerprint == before.fingerprint and read
    read.clear()
    row = judged.verdict("SAFE", detail="new")
    VerdictSet(folder).write(stems(shards)[0], [{"key": "cd" * 16, **row}])
    assert Labels(folder, stems(shards)).fingerprint != before.fingerprint and read
    read.clear()
    assert len(shard_keys(shards[0], ("category", "meta"), folder).branch) and read


def test_what_is_missing_is_known(tmp_path):
    """Shards without a part, and the trees of which something was never asked; nothing is written
    when it is not to be kept."""
    shards, folder = world(tmp_path)
    assert Labels(folder, [*stems(shards), "other"]).missing == ["other"]
    keys = shard_keys(shards[0], ("category",), folder)
    empty = open_set(
        tmp_path / "verdicts" / "b", {"arbiter": "b", "digest": "b", "spec": {}, "reads": []}
    )
    none = Labels(empty.folder, stems(shards), keep=False)
    assert none.missing == stems(shards) and none.get("00" * 16) is None
    assert shard_labels(keys, none, LabelRules()).unknown.tolist() == list(range(9))
    shard_keys(shards[0], ("meta",), empty.folder, keep=False)
    assert [path.name for path in empty.folder.iterdir()] == ["judge.json"]


def test_a_damaged_set_is_named(tmp_path):
    """A part that is not what its manifest says, a manifest that is none, a row of another kind."""
    shards, folder = world(tmp_path)
    part = min(folder.glob("trees*.jsonl"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-2] + b" \n")
    with pytest.raises(RecordError, match="damaged: its contents do not match"):
        Labels(folder, stems(shards), anew=True)
    part.write_bytes(whole)
    manifest = part.with_name(part.name + ".manifest.json")
    manifest.write_text("{}")
    with pytest.raises(RecordError, match="its manifest is damaged"):
        Labels(folder, stems(shards))
    other = open_set(
        tmp_path / "verdicts" / "c", {"arbiter": "c", "digest": "c", "spec": {}, "reads": []}
    )
    other.write("s", [{"key": "no hex", **judged.verdict("SAFE")}])
    with pytest.raises(UserError, match="holds no verdicts of this version"):
        Labels(other.folder, ["s"])
