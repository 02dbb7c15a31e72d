"""Further parts of trees: each question once, in its place, as its newest part has it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.data_pipelines.json_parts import manifest_path, write_part
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_parts import (
    Chosen,
    Plan,
    count_plans,
    newest,
    part_stem,
    plan_path,
    planned,
    read_plan,
    write_plan,
)
from srpo_jax.data_pipelines.tree_store import (
    SUFFIX,
    TreeSource,
    fingerprint,
    read_shard,
    read_shards,
    shards_of,
    write_shard,
)
from tests.support import judged

STEMS = [f"trees-0000{shard}-of-00003" for shard in range(3)]


def tree(name, k=0):
    return judged.plain(judged.tree(name, branches=[judged.branch(k=i) for i in range(k + 1)]))


def write(folder, counts, parts):
    """Shards of `counts` trees, and for each part the trees of each shard that it has again.
    Returns [(id, branches)] as a reader is to see them."""
    judged.write_trees(
        folder, *([tree(f"q{s}-{i}") for i in range(count)] for s, count in enumerate(counts))
    )
    found = {(s, i): (f"q{s}-{i}", 1) for s, count in enumerate(counts) for i in range(count)}
    for number, chosen in enumerate(parts, 1):
        plan = Plan({"part": number}, {})
        for s, trees in enumerate(chosen):
            if trees:
                ids = [f"q{s}-{i}" for i in trees]
                plan.shards[STEMS[s]] = Chosen(trees, ids)
                path = folder / f"{part_stem(STEMS[s], number)}{SUFFIX}"
                write_shard(path, [tree(name, number) for name in ids])
                found.update({(s, i): (name, number + 1) for i, name in zip(trees, ids)})
        write_plan(folder, plan)
    return list(found.values())


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    parts=st.lists(st.lists(st.sets(st.integers(0, 3)), min_size=3, max_size=3), max_size=3),
)
def test_each_question_is_there_once(tmp_path_factory, counts, parts):
    """In the order of the first exploration, from its newest part; `numbers` says of every record
    as which tree it is read, if at all."""
    folder = tmp_path_factory.mktemp("trees")
    parts = [[sorted(i for i in own if i < n) for own, n in zip(part, counts)] for part in parts]
    expected = write(folder, counts, parts)
    source = read_shards(folder)
    assert [(t["id"], len(t["branches"])) for t in source] == expected
    seen = {}
    for (path, count), numbers in zip(source.shards, source.numbers, strict=True):
        alone = read_shard(path)
        assert len(alone) == count == len(numbers)
        for record, number in zip(alone, numbers.tolist(), strict=True):
            if number >= 0:
                assert (record["id"], len(record["branches"])) == expected[number]
                assert number not in seen and source.place(number) == path
                seen[number] = path
    assert len(seen) == len(source) == len(expected)
    assert planned(folder) == [
        path.name.removesuffix(SUFFIX)
        for path in sorted(shards_of(folder), key=lambda p: (p.name.partition(".more-")[2], p.name))
        if ".more-" in path.name
    ]
    shutil.rmtree(folder)


def test_parts_are_counted_as_numbers():
    """The tenth stands before no second, whatever the order of names."""
    stems = ["s", "s.more-10", "s.more-2"]
    plans = {n: Plan({"part": n}, {"s": Chosen([0], ["a"])}) for n in (2, 10)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "srpo_jax.data_pipelines.tree_parts.read_plan", lambda folder, number: plans[number]
        )
        assert np.array_equal(newest(None, stems, [2, 1, 1]), [[1, 0], [0, 1]])


def test_a_part_changes_the_fingerprint_and_a_plan_alone_does_not(tmp_path):
    write(tmp_path, [2, 1, 1], [])
    before = fingerprint(tmp_path)
    write_plan(tmp_path, Plan({"part": 1}, {STEMS[0]: Chosen([1], ["q0-1"])}))
    assert fingerprint(tmp_path) == before and count_plans(tmp_path) == 1
    write_shard(tmp_path / f"{part_stem(STEMS[0], 1)}{SUFFIX}", [tree("q0-1", 1)])
    assert fingerprint(tmp_path) != before
    assert read_plan(tmp_path, 1).shards == {STEMS[0]: Chosen([1], ["q0-1"])}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("plan gone", "more-1.jsonl: is missing, and there are shards of this part"),
        ("first gone", "more-1.array_record: the shard that it adds to is missing"),
        ("another shard's", "it does not fit the shards of trees-00000"),
        ("too high", "it does not fit the shards of trees-00000"),
        ("no numbers", "no plan of part 1"),
        ("twice", "no plan of part 1"),
        ("bytes", "damaged: its contents do not match"),
    ],
)
def test_a_part_that_does_not_fit_is_named(tmp_path, damage, said):
    """Before any tree is read, in one line that names the file."""
    write(tmp_path, [2, 1, 1], [[[0, 1], [], []]])
    path, about = plan_path(tmp_path, 1), {"part": 1}
    row = {"shard": STEMS[0], "trees": [0, 1], "ids": ["a", "b"]}
    if damage == "plan gone":
        manifest_path(path).unlink()
    elif damage == "first gone":
        for gone in (tmp_path / f"{STEMS[0]}{SUFFIX}",):
            gone.unlink()
            manifest_path(gone).unlink()
    elif damage == "bytes":
        path.write_bytes(path.read_bytes().replace(b"q0-1", b"q0-2"))
    else:
        row |= {
            "another shard's": {"shard": STEMS[1]},
            "too high": {"trees": [0, 2]},
            "no numbers": {"trees": ["0", "1"]},
            "twice": {"trees": [1, 1]},
        }[damage]
        write_part(path, [about, row])
    with pytest.raises(RecordError, match=said) as error:
        TreeSource(tmp_path)
    assert "\n" not in str(error.value)
