"""The road on photographs: JSONL and JPEG files -> tokens and pixels -> trees -> a batch."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from srpo_jax.data_pipelines.images import load_record_images
from srpo_jax.data_pipelines.records import CATEGORIES, read_records
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.models.families.qwen2_5_vl.model import image_layout
from srpo_jax.models.hf.chat import chat_template
from srpo_jax.models.hf.processor import Processor
from srpo_jax.pack.batches import Batches, make_loader
from srpo_jax.pack.examples import Examples
from tests.support.photos import photos

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return photos.write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return photos.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor.from_dir(checkpoint)


def test_the_records_are_a_dataset_in_miniature(jsonl):
    """Six headed steps each; the same photograph in risky and in benign records."""
    records = read_records(jsonl)
    assert len(records) >= 12 and all(len(record.steps) == 6 for record in records)
    assert all((record.category in CATEGORIES) == record.risky for record in records)
    assert all(bool(record.unsafe_reply) == record.risky for record in records)
    by_label = [
        {name for r in records if r.risky is risky for name in r.images} for risky in (True, False)
    ]
    assert len(by_label[0] & by_label[1]) >= 4
    assert {len(record.images) for record in records} == {0, 1, 2}


def test_pictures_are_decoded_as_pillow_does(jsonl):
    """JPEG pixels as Pillow's, RGB also from grey, upright; no side is a multiple of 28."""
    for record in read_records(jsonl):
        for name, picture in zip(record.images, load_record_images(record), strict=True):
            with Image.open(jsonl.parent / name) as plain:
                expected = plain.convert("RGB")
            if photos.TURNED in name:
                expected = expected.transpose(Image.Transpose.ROTATE_270)
            assert picture.mode == "RGB"
            assert picture.width % 28 and picture.height % 28
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_tokens_and_pixels_equal_transformers(jsonl, checkpoint, processor):
    """Every record: ids and pixel values of HF's tokenizer, chat template and image processor."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    pad = tokenizer.convert_ids_to_tokens(processor.config.image_token_id)
    for record in read_records(jsonl):
        pictures = load_record_images(record)
        ours = processor.encode_question(record.question, pictures)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _content(record)}],
            tokenize=False,
            chat_template=chat_template(checkpoint),
            add_generation_prompt=True,
        )
        grids = []
        if pictures:
            theirs = image_processor(pictures, return_tensors="np")
            grids = [tuple(map(int, grid)) for grid in theirs["image_grid_thw"]]
            order, done = [], 0
            for grid in grids:
                assert 1 < grid[1] * grid[2] <= photos.MAX_PIXELS // 14**2
                order.append(image_layout(grid, processor.config).order + done)
                done += grid[1] * grid[2]
            np.testing.assert_array_equal(
                ours.patches, theirs["pixel_values"][np.concatenate(order)]
            )
        for grid in grids:
            text = text.replace(pad, "\0" * (grid[1] * grid[2] // 4), 1)
        expected = tokenizer(text.replace("\0", pad), add_special_tokens=False)["input_ids"]
        np.testing.assert_array_equal(ours.tokens, expected)


def _content(record) -> list[dict]:
    """The user's turn as transformers writes it: markers become image parts."""
    parts = record.question.split("<image>")
    if len(parts) == 1:
        parts = [""] * len(record.images) + parts
    content = []
    for i, part in enumerate(parts):
        content += [{"type": "image"}] if i else []
        content += [{"type": "text", "text": part}] if part else []
    return content


def test_photos_to_a_batch(jsonl, processor, tmp_path):
    """Tree records, labels, packing and loader: each photograph's patches arrive unchanged."""
    folder = photos.write_trees(tmp_path / "trees", jsonl, processor)
    trees = JudgedTrees(read_shards(folder), find_set(folder), complete=True)
    records = read_records(jsonl)
    examples = Examples(trees, processor, require_effective=True)
    assert [examples[i].id for i in range(len(examples))] == [record.id for record in records]
    batches = Batches(examples, rows_per_batch=2, seed=0)
    step, batch = next(make_loader(batches, num_steps=3))
    assert step == 0 and batch["ref_weight"].sum() == pytest.approx(1)
    assert batch["pair_weight"].sum() == pytest.approx(1)  # every record has a pair
    for row, ids in enumerate(batches.question_ids(0)):
        prompts = [examples[[r.id for r in records].index(name)].prompt for name in ids]
        patches = np.concatenate([prompt.patches for prompt in prompts])
        np.testing.assert_array_equal(batch["patches"][row, : len(patches)], patches)
        assert not batch["patches"][row, len(patches) :].any()


def test_photos_come_without_the_jsonl(jsonl, processor, tmp_path):
    """A tree record carries the file's bytes: nothing else is read when training."""
    trees = read_shards(photos.write_trees(tmp_path / "trees", jsonl, processor))
    for record, tree in zip(read_records(jsonl), trees, strict=True):
        for name, image in zip(record.images, tree["images"], strict=True):
            assert image["data"] == (jsonl.parent / name).read_bytes()
            Image.open(io.BytesIO(image["data"])).verify()
