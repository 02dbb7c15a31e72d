"""A start from what is kept beside the shards trains on what a start without it trains on."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.data_pipelines.sidecars.columns import read_columns, write_columns
from srpo_jax.data_pipelines.sidecars.labels import LabelRules, Labels
from srpo_jax.data_pipelines.tree_parts import Chosen, Plan, part_stem, write_plan
from srpo_jax.data_pipelines.tree_store import SUFFIX, TreeSource, read_shards, write_shard
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.errors import UserError
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import PromptEncoder
from srpo_jax.pack import outlines, shard_tables
from srpo_jax.pack.batches import Batches
from srpo_jax.pack.examples import Examples
from srpo_jax.pack.prompts import Prompts
from srpo_jax.pack.shard_tables import Process, ShardTables
from tests.pack.test_batches import assert_same, tree_record
from tests.support import judged
from tests.support.tiny import tiny_qwen2_5_vl

TREES = 12
OPTIONS = {"rows_per_batch": 2, "seed": 3}
VERDICTS = (("SAFE", "UNSAFE", "SAFE", "ERROR"), ("SAFE",) * 3, ("UNSAFE", "SAFE", "UNSAFE"))


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor.from_dir(tiny_qwen2_5_vl(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def folder(tmp_path):
    """Two shards of trees with pictures, some without a pair, some with a reference path that is
    judged unsafe, and some branches that the path format does not read whole."""
    trees = [tree_record(i, verdicts=VERDICTS[i % 3]) for i in range(TREES)]
    for i, tree in enumerate(trees):
        tree["reference_verdict"] = judged.verdict("UNSAFE" if i % 4 == 1 else "SAFE")
        for branch in tree["branches"][:: 3 + i]:
            branch["status"] = "irregular"
        tree["branches"].append({**tree["branches"][0], "k": 9})  # the same branch once more
    return judged.write_judged(tmp_path / "trees", trees[:5], trees[5:])


def add_part(folder):
    """More branches for some trees of both shards, which turn the labels of a few pairs around: a
    further part, judged."""
    trees = list(JudgedTrees(read_shards(folder), find_set(folder)))
    plan = Plan({"part": 1}, {})
    for shard, numbers, first in ((0, [1, 4], 0), (1, [0, 2, 6], 5)):
        stem = f"trees-0000{shard}-of-00002"
        chosen = [trees[first + number] for number in numbers]
        for tree in chosen:
            tree["branches"] += tree_record(40 + first, verdicts=("UNSAFE", "SAFE"))["branches"]
            for k, branch in enumerate(tree["branches"]):
                branch.update(k=k, at=min(branch["at"], len(tree["steps"]) - 1))
        plan.shards[stem] = Chosen(numbers, [tree["id"] for tree in chosen])
        path = folder / f"{part_stem(stem, 1)}{SUFFIX}"
        write_shard(path, [judged.plain(tree) for tree in chosen])
        verdicts = find_set(folder)
        rows = {}
        for tree in chosen:
            rows.update(dict(judged.judged_contents(tree, verdicts)))
        verdicts.write(part_stem(stem, 1), [{"key": key, **row} for key, row in rows.items()])
    write_plan(folder, plan)


def examples(folder, processor, *, kept=True, digest="d", safe=False, process=None):
    """Of all trees, or of those whose reference path is judged safe. kept: by sidecars."""
    source, prompts = read_shards(folder), Prompts(PromptEncoder(processor))
    if not kept:
        whole, numbers = find_set(folder), None
        if safe:
            joined = JudgedTrees(source, whole)
            numbers = [
                i for i, t in enumerate(joined) if t["reference_verdict"]["reply_verdict"] == "SAFE"
            ]
        return Examples(JudgedTrees(source, whole, keep=numbers, complete=True), processor)
    stems = [path.name.removesuffix(SUFFIX) for path, _ in source.shards]
    labels = Labels(find_set(folder).folder, stems)
    tables = ShardTables(source, prompts, digest, labels, LabelRules(), process)
    numbers = np.flatnonzero(tables.references() == 1).tolist() if safe else None
    joined = JudgedTrees(source, labels, keep=numbers, complete=True)
    return Examples(joined, processor, prompts=prompts, tables=tables, numbers=numbers)


def sidecars(folder, kind=""):
    return sorted(folder.glob(f"*.{kind}*.npz"))


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_tokens": 192},  # most trees are cut
        {"pairing": "one", "row_tokens": 192, "drop_long": True},
        {"pairing": "rpo_code", "max_pairs": 2, "odds_from": "divergence", "reference": "chosen"},
        {"compare": False},
    ],
    ids=str,
)
def test_batches_are_the_same_with_and_without(folder, processor, options, safe, capsys):
    """Bit for bit, over epochs, for every pairing, cut trees and left out ones: on the start that
    writes what is kept and on the one that finds it; the same trees are counted and named."""
    plain = Batches(examples(folder, processor, kept=False, safe=safe), **OPTIONS, **options)
    said = capsys.readouterr().err
    for _ in range(2):
        kept = Batches(examples(folder, processor, safe=safe), **OPTIONS, **options)
        assert capsys.readouterr().err == said
        counts = (kept.used, kept.pairs, kept.with_pair, kept.budgets)
        assert counts == (plain.used, plain.pairs, plain.with_pair, plain.budgets)
        for k in (0, 5, 11):
            assert_same(kept[k], plain[k])
            assert kept.question_ids(k) == plain.question_ids(k)


@pytest.mark.parametrize("safe", [False, True])
def test_a_further_part_stands_in_for_its_trees(folder, processor, safe):
    """Every tree once and in its place, with and without sidecars; and its branches are used."""
    before = Batches(examples(folder, processor, safe=safe), **OPTIONS)
    add_part(folder)
    plain = Batches(examples(folder, processor, kept=False, safe=safe), **OPTIONS)
    assert len(plain.used) == len(before.used) and plain.pairs > before.pairs
    for _ in range(2):
        kept = Batches(examples(folder, processor, safe=safe), **OPTIONS)
        assert (kept.used, kept.pairs, kept.with_pair) == (plain.used, plain.pairs, plain.with_pair)
        for k in (0, 5):
            assert_same(kept[k], plain[k])
            assert kept.question_ids(k) == plain.question_ids(k)


def test_a_later_start_reads_no_tree(folder, processor, monkeypatch):
    """Neither a record nor an outline, until a batch is filled. Nothing is written again."""
    first = Batches(examples(folder, processor), row_tokens=192, **OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in sidecars(folder)}
    read, get = [], TreeSource.__getitem__
    monkeypatch.setattr(TreeSource, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    monkeypatch.setattr(shard_tables, "shard_outlines", lambda *_, **__: pytest.fail("made"))
    again = Batches(examples(folder, processor), row_tokens=192, **OPTIONS)
    assert again.stream.rows(7) == again.stream.rows(7) and not read
    assert {path: path.stat().st_mtime_ns for path in sidecars(folder)} == before
    assert_same(again[0], first[0])
    assert set(read) == {plan.items[i].tree for plan, row in again.stream.rows(0) for i in row}


def test_what_decides_them_has_its_own_files(folder, processor):
    """Another way of asking, another verdict and another objective find nothing; the same ones find
    all, whichever process asks."""
    Batches(examples(folder, processor), **OPTIONS)
    assert (len(sidecars(folder, "outlines")), len(sidecars(folder, "items"))) == (2, 2)
    Batches(examples(folder, processor, process=Process(1, 2)), **OPTIONS)
    Batches(examples(folder, processor), **OPTIONS | {"seed": 4}, pairing="one")
    assert len(sidecars(folder)) == 4
    Batches(examples(folder, processor), odds_from="divergence", **OPTIONS)
    assert (len(sidecars(folder, "outlines")), len(sidecars(folder, "items"))) == (2, 4)
    Batches(examples(folder, processor, digest="e"), **OPTIONS)
    assert (len(sidecars(folder, "outlines")), len(sidecars(folder, "items"))) == (4, 6)
    verdicts = find_set(folder)
    key, row = next(iter(verdicts.of_shard("trees-00000-of-00002").items()))
    other = {**row, "reply_verdict": "ERROR"}
    verdicts.write("trees-00000-of-00002", [{"key": key, **other}])
    Batches(examples(folder, processor), **OPTIONS)
    assert (len(sidecars(folder, "outlines")), len(sidecars(folder, "items"))) == (4, 8)


@pytest.mark.parametrize("kind", ["outlines", "items"])
def test_damage_changes_nothing(folder, processor, kind):
    """A sidecar that is cut, empty or of another shard is made again."""
    expected = Batches(examples(folder, processor), **OPTIONS)[1]
    for damage in (lambda data: data[:-40], lambda data: b"", None):
        (one, other), items = sidecars(folder, kind), sidecars(folder, "items")
        whole = one.read_bytes()
        one.write_bytes(damage(whole) if damage else other.read_bytes())
        if kind == "outlines":
            for path in items:
                path.unlink()
        assert_same(Batches(examples(folder, processor), **OPTIONS)[1], expected)
        assert one.read_bytes() == whole


def test_a_sidecar_that_lies_is_refused(folder, processor):
    """Whole and of the right name, but with other sizes: when the tree comes up, in one line. One
    that lacks a tree ends the start."""
    Batches(examples(folder, processor), **OPTIONS)
    (path, _) = sidecars(folder, "items")
    lines = read_columns(path, lambda found: True)["lines"]
    lying = lines.copy()
    lying["sizes"][:, 1] -= 1
    write_columns(path, {"lines": lying})
    batches = Batches(examples(folder, processor), **OPTIONS)
    with pytest.raises(UserError, match="trees-00000-of-00002.* says of tree 't[0-4]' what") as e:
        for k in range(6):
            batches[k]
    assert "\n" not in str(e.value)
    write_columns(path, {"lines": lines[:-1]})
    with pytest.raises(UserError, match="are not whole: remove them"):
        Batches(examples(folder, processor), **OPTIONS)


def test_outlines_that_are_no_trees_are_made_again(folder, processor):
    """Tries that go round in circles, and nodes or branches that are nowhere: never walked."""
    source = read_shards(folder)
    (path, count), prompts = source.shards[0], Prompts(PromptEncoder(processor))
    whole = outlines.shard_outlines(path, prompts, "d")
    file = outlines.outlines_file(path, "d")
    for name, at, value in (
        ("parent", 3, 3),
        ("parent", 2, -1),
        ("length", 4, 0),
        ("ends", 0, 10**6),
        ("tip", 1, 0),
        ("at", 2, 99),
        ("node_ends", -1, 10**9),
        ("branch_ends", 0, -5),
    ):
        broken = getattr(whole, name).copy()
        broken[at] = value
        write_columns(file, whole._replace(**{name: broken})._asdict())
        found = outlines.shard_outlines(path, prompts, "d")
        assert all(np.array_equal(a, b) for a, b in zip(found, whole)), name
    assert len(whole.prompt) == count


def test_what_is_not_judged_yet_is_named(folder, processor, tmp_path):
    """At the start, before anything is laid out."""
    (folder.parent / "verdicts").rename(tmp_path / "away")
    trees = [tree for tree in read_shards(folder)]
    joined = [{**tree, "branches": [], "reference_verdict": judged.verdict()} for tree in trees]
    judged.write_verdicts(folder, joined[:5], joined[5:])
    with pytest.raises(UserError, match="has no verdicts on all of tree 't0': run `srpo judge`"):
        Batches(examples(folder, processor), **OPTIONS)


def test_one_long_tree_is_named(folder, processor, capsys):
    """With rows as long as the longest tree, one that more than doubles them is told; with shorter
    rows and drop_long it is left out by name, and without refused."""
    trees = [tree_record(i) for i in range(1, 5)]
    long = {**trees[-1], "id": "long", "reply": [7] * 900}
    all_of_them = Examples([*trees[:3], long], processor)
    assert Batches(all_of_them, **OPTIONS).budgets.tokens >= 900
    said = capsys.readouterr().err
    assert said.startswith("warning: tree 'long' alone makes the rows ") and said.count("\n") == 1
    options = {**OPTIONS, "row_tokens": 256}
    with pytest.raises(UserError, match="tree 'long': .*pack.too_long=drop"):
        Batches(all_of_them, **options)
    for pairing in ("all", "one"):
        found = Batches(all_of_them, drop_long=True, pairing=pairing, **options)
        assert found.used == [0, 1, 2]
        said = capsys.readouterr().err
        assert "left out 1 of 4 trees: longer than a row (pack.too_long=drop) ('long')" in said
        found[0]
    with pytest.raises(UserError, match="all 1 trees are longer than a row"):
        Batches(Examples([long], processor), drop_long=True, **options)
