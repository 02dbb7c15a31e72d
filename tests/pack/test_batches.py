"""The grain loader: batch k is a function of k alone, normalised over the whole batch."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
from PIL import ImageFile

from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.prompt import Demonstration, Prompt
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.errors import UserError
from srpo_jax.models.flops import Work
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import PromptEncoder
from srpo_jax.pack import batches as batches_module
from srpo_jax.pack import packing
from srpo_jax.pack.batches import Batches, make_loader
from srpo_jax.pack.byte_cache import ByteCache
from srpo_jax.pack.examples import Examples
from tests.support import judged
from tests.support.batch_work import batch_work
from tests.support.families import CASES
from tests.support.tiny import picture, tiny_qwen2_5_vl

TREES = 14


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor.from_dir(tiny_qwen2_5_vl(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def examples(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("trees")
    records = [tree_record(i) for i in range(TREES)]
    trees = judged.write_judged(folder / "trees", records[:5], records[5:])
    return Examples(JudgedTrees(read_shards(trees), find_set(trees)), processor)


def tree_record(i: int, *, verdicts=("SAFE", "UNSAFE", "SAFE", "ERROR")) -> dict:
    """A tree with a picture (or none), 2-4 steps, one branch of each verdict at every point."""
    rng = np.random.default_rng(i)
    images = []
    if i % 5:
        buffer = io.BytesIO()
        width, height = 28 * rng.integers(1, 6, 2)
        picture(int(width), int(height), i % 3).save(buffer, "PNG")
        data = buffer.getvalue()
        images.append({"name": "a.png", "sha256": hashlib.sha256(data).hexdigest(), "data": data})

    def tokens(low, high):
        return rng.integers(0, 256, int(rng.integers(low, high))).tolist()

    steps = [tokens(3, 9) for _ in range(int(rng.integers(2, 5)))]
    branches = [
        judged.branch(at, k, verdict, tokens=tokens(2, 12))
        for at in range(len(steps))
        for k, verdict in enumerate(verdicts)
    ]
    return judged.tree(
        f"t{i}",
        images=images,
        steps=steps,
        reply=tokens(3, 9),
        step_texts=[""] * len(steps),
        branches=branches,
    )


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


@pytest.mark.parametrize("pairing", ["all", "rpo_code"])
def test_batch_is_a_function_of_the_step_alone(examples, pairing):
    """Any start step, 1, 2 or 4 processes and any threads: the same global batches, bitwise."""
    options = {"rows_per_batch": 4, "seed": 3, "row_tokens": 256, "pairing": pairing}
    whole = dict(make_loader(examples, num_steps=9, threads=0, **options))
    assert list(whole) == list(range(9))
    shapes = {name: array.shape for name, array in whole[0].items()}
    assert all({n: a.shape for n, a in b.items()} == shapes for b in whole.values())
    for start, processes, threads in ((0, 1, 2), (4, 2, 0), (7, 4, 2)):
        loaders = [
            make_loader(
                examples,
                start_step=start,
                num_steps=9,
                threads=threads,
                process_index=p,
                process_count=processes,
                **options,
            )
            for p in range(processes)
        ]
        for expected in range(start, 9):
            parts = [next(loader) for loader in loaders]
            assert {k for k, _ in parts} == {expected}
            joined = {
                name: np.concatenate([batch[name] for _, batch in parts]) for name in whole[0]
            }
            assert_same(joined, whole[expected])
        assert all(next(loader, None) is None for loader in loaders)
    apart = dict(
        make_loader(examples, num_steps=2, rows_here=lambda rows: (0, 3), **options)
    )  # of any mesh
    assert_same(apart[1], {name: array[[0, 3]] for name, array in whole[1].items()})


def test_epochs_visit_every_tree_once_and_reshuffle(examples):
    """The row stream is the epochs' plans one after another; a plan holds each tree once."""
    batches = Batches(examples, rows_per_batch=3, seed=0, row_tokens=256)
    plans = [batches.plan(epoch) for epoch in range(3)]
    for plan in plans:
        held = [plan.items[i].tree for row in plan.rows for i in row]
        assert sorted(held) == list(range(TREES))
    assert plans[0].rows != plans[1].rows
    stream = [(p.epoch, row) for p in plans for row in p.rows]
    seen = [(p.epoch, row) for k in range(len(stream) // 3) for p, row in batches.stream.rows(k)]
    assert seen == stream[: len(seen)]
    assert Batches(examples, rows_per_batch=3, seed=1, row_tokens=256).plan(0).rows != plans[0].rows


def test_weights_are_of_the_whole_batch(examples):
    """L_ref and L_exp weights of every global batch sum to 1, also where processes share it."""
    for reduction in ("question", "token"):
        halves = [
            Batches(
                examples,
                rows_per_batch=4,
                seed=0,
                ref_reduction=reduction,
                process_index=p,
                process_count=2,
            )
            for p in range(2)
        ]
        for k in range(3):
            parts = [half[k] for half in halves]
            total = sum(part["ref_weight"].astype(np.float64).sum() for part in parts)
            assert total == pytest.approx(1, abs=1e-6)
            assert sum(part["pair_weight"].sum() for part in parts) == pytest.approx(1, abs=1e-6)


def test_a_whole_epoch_is_measured_once(examples):
    """Every question once, whatever the rows of a batch; the sums are means over all; rows without
    a tree are padding, of the shape of the others."""
    for size in (2, 3, 50):
        batches = Batches(examples, rows_per_batch=size, seed=1)
        found = list(batches.whole_epoch())
        assert len(found) == -(-len(batches.plan(0).rows) // size)
        assert {batch["tokens"].shape for batch in found} == {batches[0]["tokens"].shape}
        for name in ("ref_weight", "pair_weight"):
            assert sum(float(batch[name].sum()) for batch in found) == pytest.approx(1, abs=1e-5)
        ends = sum(int((batch["ref_weight"] > 0).sum()) for batch in found)
        assert ends == len(batches.used)


@pytest.mark.parametrize("denominator, total", [("paired", 1.0), ("all", 2 / 6)])
def test_what_the_pairs_are_averaged_over(processor, denominator, total):
    """L_exp is the mean over the questions that have a pair, or over all: also where processes
    share a batch that holds no pair of their own, and where the questions without one come alone.
    """
    lonely = [tree_record(i, verdicts=("SAFE", "ERROR")) for i in range(4)]
    records = [tree_record(4), *lonely, tree_record(5)]
    options = {"seed": 0, "exp_denominator": denominator}
    examples = Examples(records, processor)
    rows = len(Batches(examples, rows_per_batch=2, row_tokens=256, **options).plan(0).rows)
    batches = [
        Batches(
            examples,
            rows_per_batch=rows,
            row_tokens=256,
            process_index=p,
            process_count=rows,
            **options,
        )
        for p in range(rows)
    ]
    assert (batches[0].with_pair, batches[0].pairs) == (2, 2 * sum_of_points(records))
    weights = [part[0]["pair_weight"].sum() for part in batches]
    assert sum(weights) == pytest.approx(total, abs=1e-6) and min(weights) == 0
    none = Batches(Examples(lonely, processor), rows_per_batch=1, **options)
    assert none[0]["pair_weight"].sum() == 0 and none.with_pair == none.pairs == 0


def sum_of_points(records) -> int:
    """Branch points of the records that have both verdicts."""
    return sum(
        len(r["steps"])
        for r in records
        if {"SAFE", "UNSAFE"} <= {b["reply_verdict"] for b in r["branches"]}
    )


def test_what_is_not_compared_is_not_laid_out(processor):
    """compare=False: the batches are those of trees without any branch, and nothing is drawn."""
    records = [tree_record(i) for i in range(4)]
    bare = [{**record, "branches": []} for record in records]
    options = {"rows_per_batch": 2, "seed": 0, "pairing": "one"}
    found = Batches(Examples(records, processor), compare=False, **options)
    expected = Batches(Examples(bare, processor), **options)
    for k in range(3):
        assert_same(found[k], expected[k])
    assert found.with_pair == found.pairs == 0


def test_trees_that_nobody_judged_have_no_branches(processor):
    """A tree record as exploration wrote it is its reference path: no branch is taken for safe."""
    record = tree_record(1)
    assert Examples([record], processor)[0].branches
    assert Examples([judged.plain(record)], processor)[0].branches == ()


def test_trees_longer_than_a_row_are_split_exactly(examples):
    """Parts of a split tree count as one question and its reference once; pictures stay whole."""
    whole = Batches(examples, rows_per_batch=1, seed=0)
    longest = max(item.sizes.tokens for item in whole.plan(0).items)
    fits = min(b for b in range(64, longest, 64) if _splits(examples, b))
    batches = Batches(examples, rows_per_batch=1, seed=0, row_tokens=fits)
    plan = batches.plan(0)
    assert len(plan.items) > TREES
    assert sum(item.question_share for item in plan.items) == pytest.approx(TREES)
    # One batch of exactly one epoch: the sums over it are those of unsplit trees.
    epoch = Batches(examples, rows_per_batch=len(plan.rows), seed=0, row_tokens=fits)[0]
    assert epoch["ref_weight"].sum() == pytest.approx(1, abs=1e-5)
    assert epoch["pair_weight"].sum() == pytest.approx(1, abs=1e-5)
    shown = (epoch["image_index"] >= 0).sum(axis=1)
    patches = (epoch["window_seg"] >= 0).sum(axis=1)
    np.testing.assert_array_equal(shown * 4, patches)


def _splits(examples, row_tokens: int) -> bool:
    try:
        Batches(examples, rows_per_batch=1, seed=0, row_tokens=row_tokens).plan(0)
    except UserError:  # one branch point alone is larger
        return False
    return True


def test_pairs_are_drawn_anew_each_epoch(examples):
    """pairing=one: a different pair of a point in different epochs, and rows stay in budget."""
    batches = Batches(examples, rows_per_batch=1, seed=0, pairing="one")
    drawn = []
    for epoch in range(4):
        plan = batches.plan(epoch)
        assert all(batches.budgets.holds(item.sizes) for item in plan.items)
        drawn.append([tuple(e.tokens.tolist()) for e in batches._layouts(3, epoch)])
    assert len(set(map(str, drawn))) > 1


@pytest.mark.parametrize("pairing", ["all", "one", "rpo_code"])
def test_a_late_start_plans_no_earlier_epoch(examples, monkeypatch, pairing):
    """Told where the batches before ended, any step gives the batch of a run that began at 0, and
    lays out the epochs of that batch alone. Earlier steps are still found.
    """
    options = {"rows_per_batch": 3, "seed": 5, "row_tokens": 200, "pairing": pairing}
    whole = Batches(examples, **options)
    steps = range(0, 60, 7)
    expected = {step: whole[step] for step in steps}
    assert whole.stream.epoch(steps[-1]) > 10
    planned: set[int] = set()
    plan_rows = packing.plan_rows

    def plan(*args, epoch, **kwargs):
        planned.add(epoch)
        return plan_rows(*args, epoch=epoch, **kwargs)

    monkeypatch.setattr(batches_module, "plan_rows", plan)
    for step in steps:
        late = Batches(examples, **options)
        late.stream.start_from(json.loads(json.dumps(whole.stream.place(step))))
        planned.clear()
        assert_same(late[step], expected[step])
        first = whole.stream.epoch(max(0, step - 1))
        assert planned <= set(range(first, whole.stream.epoch(step + 1) + 1)) and len(planned) <= 3
        assert late.stream.place(step) == whole.stream.place(step)
        assert_same(late[0], expected[0])
        assert_same(late[steps[-1]], expected[steps[-1]])


def test_a_place_of_other_trees_or_settings_is_left_alone(examples, processor):
    """Other pairs, budgets or trees take other rows: the epochs are counted from the first on."""
    options = {"rows_per_batch": 3, "seed": 5, "row_tokens": 200, "pairing": "one"}
    place = Batches(examples, **options).stream.place(40)
    fewer = Examples([tree_record(i) for i in range(TREES - 1)], processor)
    others = [
        Batches(examples, **{**options, **change})
        for change in ({"seed": 6}, {"row_tokens": 400}, {"pairing": "rpo_code"})
    ]
    for batches in (*others, Batches(fewer, compare=False, **options)):
        epoch = batches.stream.epoch(40)
        for wrong in (place, {**place, "epoch": 3}, None, [], {}, "x"):
            batches.stream.start_from(wrong)
            assert batches.stream.epoch(40) == epoch


def test_trees_without_a_loss_are_named(processor, capsys):
    """reference=none and no pair: the tree is left out with its name; with none left, refused."""
    records = [tree_record(1), tree_record(2, verdicts=("SAFE", "ERROR"))]
    batches = Batches(Examples(records, processor), rows_per_batch=1, seed=0, reference="none")
    assert batches.used == [0]
    assert "left out 1 of 2 trees" in (said := capsys.readouterr().err) and "'t2'" in said
    with pytest.raises(UserError, match="none of 1 trees can be trained on"):
        Batches(Examples(records[1:], processor), rows_per_batch=1, seed=0, reference="none")


def test_bad_trees_are_named(processor):
    """A picture that does not decode, or another policy's token ids: the error names the tree."""
    record = tree_record(1)
    image = {"name": "x.png", "data": b"<html>", "sha256": hashlib.sha256(b"<html>").hexdigest()}
    broken = Examples([record | {"images": [image]}], processor)
    with pytest.raises(RecordError, match=r"tree 't1': x.png: not a JPEG, PNG, WEBP image"):
        broken[0]
    with pytest.raises(RecordError, match=r"tree 't1': token id 999, but the model has 400"):
        Examples([record | {"reply": [999]}], processor)[0]
    with pytest.raises(RecordError, match=r"tree 't1': .*markers"):
        Examples([record | {"question": "<image><image>?"}], processor)[0]


def test_trees_are_asked_as_they_were_explored(processor, decoded):
    """System, demonstration and instruction stand in every tree's prompt, pictures first; those of
    demonstrations are decoded once, and counted in tokens and patches."""
    records = [tree_record(i) for i in range(4)]
    shown = records[1]["images"][0]["data"]
    demo = Demonstration("d", "What is it?", "I look.\nReply: Yes.", (shown,))
    prompt = Prompt("Be kind.", "Look: ", "!", (demo,))
    decoded.clear()
    examples = Examples(records, processor, prompt=prompt)
    bare, encoder = Examples(records, processor), PromptEncoder(processor, prompt)
    extra = len(encoder.encode("", []).patches)
    for i, record in enumerate(records):
        pictures = [load_image(image["data"], what="") for image in record["images"]]
        expected = encoder.encode(record["question"], pictures)
        assert np.array_equal(examples[i].prompt.tokens, expected.tokens)
        assert np.array_equal(examples[i].prompt.patches, expected.patches)
        assert examples.outline(i).prompt.num_patches == extra + len(bare[i].prompt.patches)
        assert len(examples[i].prompt.tokens) > len(bare[i].prompt.tokens)
    own = sum(len(record["images"]) for record in records)
    assert extra and len(decoded) == 2 + 3 * own  # two encoders; twice Examples, and here


def test_each_tree_is_asked_with_the_demonstrations_of_its_category(processor):
    """Tokens and pictures of the prompt that shows these alone."""
    shown = [tree_record(i)["images"][0]["data"] for i in (1, 2)]
    demos = tuple(
        Demonstration(f"d{i}", f"Why {i}?", "Reply: Yes.", (shown[i],), category=category)
        for i, category in enumerate((None, "privacy"))
    )
    prompt = Prompt(demos=demos, by_category=True)
    records = [tree_record(1), tree_record(0) | {"category": "privacy"}]
    examples = Examples(records, processor, prompt=prompt)
    for i, record in enumerate(records):
        alone = PromptEncoder(processor, Prompt(demos=(demos[i],)))
        pictures = [load_image(image["data"], what="") for image in record["images"]]
        expected = alone.encode(record["question"], pictures)
        assert np.array_equal(examples[i].prompt.tokens, expected.tokens)
        assert np.array_equal(examples[i].prompt.patches, expected.patches)
    with pytest.raises(RecordError, match="tree 't3': .*category fraud, only of none, privacy"):
        Examples([tree_record(3) | {"category": "fraud"}], processor, prompt=prompt)[0]


@pytest.fixture
def decoded(monkeypatch):
    """Counts the pictures that Pillow decodes."""
    calls = []
    load = ImageFile.ImageFile.load

    def count(self):
        if self.tile:  # what is decoded already has none left
            calls.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", count)
    return calls


@pytest.mark.parametrize("pairing", ["all", "one"])
def test_start_up_decodes_no_picture(processor, decoded, pairing):
    """Budgets, plans and the work of every batch come from the pictures' headers; a process decodes
    the pictures of its own rows when it fills them."""
    records = [tree_record(i) for i in range(TREES)]
    decoded.clear()  # those that tree_record made
    batches = Batches(
        Examples(records, processor),
        rows_per_batch=4,
        seed=0,
        pairing=pairing,
        process_index=1,
        process_count=2,
    )
    items = [plan.items[i] for k in range(3) for plan, row in batches.stream.rows(k) for i in row]
    assert sum(item.work.patches for item in items) > 0
    assert decoded == []
    rows = batches.stream.rows(0)[2:]  # of process 1
    shown = {
        records[plan.items[i].tree]["id"]
        for plan, row in rows
        for i in row
        if records[plan.items[i].tree]["images"]
    }
    batches[0]
    assert 0 < len(decoded) <= len(shown)


def test_a_picture_that_is_damaged_is_named_when_it_is_needed(processor):
    """Its header is whole: the run starts, and ends with one line when the row is made."""
    record = tree_record(1)
    data = record["images"][0]["data"]
    data = data[: len(data) // 2]
    image = {"name": "torn.png", "data": data, "sha256": hashlib.sha256(data).hexdigest()}
    batches = Batches(
        Examples([tree_record(5), record | {"images": [image]}], processor),
        rows_per_batch=1,
        seed=0,
    )
    with pytest.raises(RecordError, match="^tree 't1': torn.png: cannot decode the image: ") as e:
        list(make_loader(batches, num_steps=4))
    assert "\n" not in str(e.value) and isinstance(e.value, UserError)


@pytest.mark.parametrize("name", CASES)
def test_the_work_of_a_batch_is_known_without_its_rows(name, tmp_path):
    """What the plan says of a global batch equals what is counted in its arrays, for every family;
    the parts of a split tree too. (LLaVA-NeXT's arrays do not show patches whose features the
    text leaves out, so there it is counted tile by tile.)"""
    processor = Processor.from_dir(CASES[name].make(tmp_path))
    config = processor.config
    batches = Batches(
        Examples([tree_record(i) for i in range(6)], processor), rows_per_batch=3, seed=0
    )
    for k in range(2):
        items = [plan.items[i] for plan, row in batches.stream.rows(k) for i in row]
        known = Work(*map(sum, zip(*(item.work for item in items))))
        counted = batch_work(batches[k], config)
        if name == "llava_next":
            tiles = np.any(
                batches[k]["patches"].reshape(
                    3, -1, config.vision.patch_unit * config.vision.patch_dim
                )
                != 0,
                axis=-1,
            ).sum()
            patches = int(tiles) * config.vision.patch_unit
            counted = counted._replace(
                patches=patches, patch_pairs=patches * config.vision.patch_unit
            )
        assert known == counted and known.patch_pairs > 0


def test_errors_and_options(examples):
    """Rows that do not divide by processes; a loader of nothing; options given twice."""
    with pytest.raises(UserError, match="pack.rows is 6"):
        Batches(examples, rows_per_batch=6, seed=0, process_count=4)
    batches = Batches(examples, rows_per_batch=2, seed=0)
    assert list(make_loader(batches, start_step=5, num_steps=5)) == []
    with pytest.raises(ValueError, match="options already"):
        make_loader(batches, num_steps=1, seed=0)


def test_examples_keep_the_label_rules(processor):
    """ERROR branches are left out; the scope decides which verdict labels the rest."""
    record = tree_record(1)
    for branch in record["branches"]:
        branch["path_verdict"] = "UNSAFE"
    reply, path = (Examples([record], processor, scope=s)[0] for s in ("reply", "path"))
    assert len(reply.branches) == len(path.branches) == 3 * len(record["steps"])
    assert any(b.safe for b in reply.branches) and not any(b.safe for b in path.branches)


def test_cache_stays_within_its_bytes():
    """The least recently used entries go first, and what is gone is made again."""
    cache, made = ByteCache(30), []

    def get(key):
        return cache.get(key, lambda: made.append(key) or key, lambda _: 10)

    for key in (1, 2, 3, 1, 4, 1, 2):
        assert get(key) == key
    assert made == [1, 2, 3, 4, 2]


def test_budgets_can_be_given(examples):
    """Given budgets are used as they are: an evaluation run repeats a training run's shapes."""
    fitted = Batches(examples, rows_per_batch=1, seed=0).budgets
    wider = dataclasses.replace(fitted, tokens=fitted.tokens + 64)
    batches = Batches(examples, rows_per_batch=1, seed=0, budgets=wider)
    assert batches[0]["tokens"].shape == (1, fitted.tokens + 64)
