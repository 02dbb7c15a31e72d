"""Qwen3-VL: what the tests over all families do not show."""

from __future__ import annotations

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.qwen_positions import merged_rows_and_columns, patch_positions
from srpo_jax.models.families.qwen3_vl.model import image_layout, table_entries
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import causal_row, encode_prompt, pad_rows
from srpo_jax.models.policy_model import PolicyModel
from srpo_jax.models.registry import load_model_config
from tests.support import tiny_qwen3_vl
from tests.support.families import CASES, Loaded, compile_fast
from tests.support.tiny import picture
from tests.support.tiny_qwen3_vl import IDS


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    case = CASES["qwen3_vl"]
    return Loaded(case, case.make(tmp_path_factory.mktemp("qwen3_vl")))


@pytest.mark.parametrize("rows_cols", [(2, 2), (6, 10), (48, 48), (64, 4), (30, 50)], ids=str)
def test_the_position_table_is_stretched_corner_to_corner(rows_cols):
    """Smaller, equal and larger grids than the 48x48 table: torch's bilinear resize of it."""
    torch = pytest.importorskip("torch")
    rows, cols = rows_cols
    table = np.random.default_rng(0).standard_normal((48, 48, 3)).astype(np.float32)
    _, row, col = merged_rows_and_columns((1, rows, cols), 2)
    patch_pos = patch_positions(row, col, 2)
    index, weight = table_entries(patch_pos, (1, rows, cols), 48)
    ours = (table.reshape(-1, 3)[index] * weight[..., None]).sum(1)
    resized = (
        torch.nn.functional.interpolate(
            torch.tensor(table).permute(2, 0, 1)[None],
            (rows, cols),
            mode="bilinear",
            align_corners=True,
        )[0]
        .permute(1, 2, 0)
        .numpy()
    )
    np.testing.assert_allclose(ours, resized[patch_pos[:, 0], patch_pos[:, 1]], atol=5e-5)
    assert index.dtype == np.int32 and weight.dtype == np.float32
    assert index.min() == 0 and index.max() == 48 * 48 - 1 and weight.min() >= 0


def processor_of_transformers(folder, monkeypatch):
    """HF's own processor, put together by hand: its loader wants torchvision for the video slot."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, processing_utils
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    class VideoSlot:
        merge_size = temporal_patch_size = 2
        model_input_names: list[str] = []

    module = processing_utils.transformers_module
    monkeypatch.setattr(module, "VideoProcessorMixin", VideoSlot, raising=False)
    return Qwen3VLProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        VideoSlot(),
        chat_template=tiny_qwen3_vl.CHAT_TEMPLATE,
    )


@pytest.mark.parametrize("size", [*tiny_qwen3_vl.SIZES, (1, 1), (13, 200), (641, 479)], ids=str)
def test_pixels_and_ids_equal_transformers(loaded, monkeypatch, size):
    """Any size, multiples of 32 or not, and the words of thinking models: HF's, bit for bit."""
    hf = processor_of_transformers(loaded.folder, monkeypatch)
    shown, asked = picture(*size), "What? <think>\nsafe\n</think> \u00e9"
    content = [{"type": "image", "image": shown}, {"type": "text", "text": asked}]
    theirs = hf.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="np",
    )
    patches, grid = loaded.processor.image(shown)
    assert np.array_equal(patches, theirs["pixel_values"])
    assert grid == tuple(theirs["image_grid_thw"][0])
    assert loaded.processor.prompt_tokens(asked, [grid]) == theirs["input_ids"][0].tolist()


def test_placeholders_are_never_sampled_and_thoughts_may_be(loaded):
    """Ids that would claim a picture, or that no token has, are suppressed; <think> is a word."""
    pads = {IDS["<|image_pad|>"], IDS["<|video_pad|>"], IDS["<|vision_pad|>"]}
    unused = set(range(len(IDS) + tiny_qwen3_vl.tiny.BASE_TOKENS, tiny_qwen3_vl.VOCAB))
    assert len(unused) > 3
    suppressed = set(loaded.processor.suppress_ids)
    assert suppressed == pads | unused  # <|endoftext|> pads too, but it ends replies
    assert IDS["<think>"] in loaded.processor.encode("<think>")


def in_one_row(rows, features):
    """Rows one after another in one row, each with the features of its own pictures."""
    out, tokens, before, seg = {name: [] for name in rows[0]}, 0, 0, 0
    for row, count in zip(rows, features, strict=True):
        moved = dict(row, subtree_end=row["subtree_end"] + tokens)
        moved["image_index"] = np.where(row["image_index"] < 0, -1, row["image_index"] + before)
        moved["image_seg"] = row["image_seg"] + seg
        tokens, before = tokens + len(row["tokens"]), before + count
        seg = max([seg, *(moved["image_seg"] + 1)])
        for name, values in moved.items():
            out[name].append(values)
    return {n: np.concatenate(v, axis=1 if n == "positions" else 0) for n, v in out.items()}


def test_prompts_in_one_row_keep_their_own_pictures(loaded):
    """DeepStack adds each picture's features to its own tokens when prompts share a row."""
    rows = [causal_row(prompt, [31, 32]) for prompt in loaded.prompts]
    joined = in_one_row(rows, [prompt.features for prompt in loaded.prompts])
    room = dict(tokens=len(joined["tokens"]) + 3, patches=len(joined["patches"]) + 4)
    batch = pad_rows([joined, *rows], **room)
    hidden = compile_fast(loaded.model.apply)({"params": loaded.params}, batch)
    start = 0
    for alone, row in zip(hidden[1:], rows, strict=True):
        count = len(row["tokens"])
        np.testing.assert_allclose(hidden[0, start : start + count], alone[:count], atol=2e-5)
        start += count


@pytest.mark.slow  # test_qwen2_5_vl.py trains so, too
def test_training_in_bfloat16_and_with_remat(loaded):
    """remat changes no gradient, keeps one activation per block, and bfloat16 stays near.

    Each parameter has a gradient: the position table and the mergers of DeepStack among them.
    """
    room = loaded.room(2)
    batch = pad_rows([causal_row(prompt, [31, 32]) for prompt in loaded.prompts], **room)

    def loss(params, **fields):
        hidden = PolicyModel(loaded.config, **fields).apply({"params": params}, batch)
        return jnp.mean(jnp.sin(hidden.astype(jnp.float32))), hidden

    def gradient(**fields):
        return jax.grad(functools.partial(loss, **fields), has_aux=True)

    plain, hidden = compile_fast(gradient())(loaded.params)
    again, _ = compile_fast(gradient(remat="full"))(loaded.params)
    half, near = compile_fast(gradient(remat="full", dtype=jnp.bfloat16))(loaded.params)
    for a, b, c in zip(*map(jax.tree.leaves, (plain, again, half)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a).max() > 0 and np.isfinite(c).all() and c.dtype == np.float32
    assert np.abs(np.asarray(near, np.float32) - hidden).mean() < 0.05 * np.abs(hidden).mean()

    vision, patches = loaded.config.vision, room["patches"]
    kept = str(jax.make_jaxpr(gradient(remat="full"))(loaded.params))
    inside = {
        found
        for found in re.findall(rf"f32\[{vision.depth},([\d,]+)\]", kept)
        if str(patches) in found.split(",")
    }
    assert inside == {f"3,{patches},{vision.hidden_size}"}


def write(folder, **change):
    raw = tiny_qwen3_vl.config(tied=True, dtype="float32")
    for key, value in change.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_a_config_saved_by_transformers_5_is_the_same_model(tmp_path):
    """`rope_scaling` becomes `rope_parameters`, for the vision tower too; the model is the same."""
    transformers = pytest.importorskip("transformers")
    config = load_model_config(write(tmp_path))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    raw = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "rope_parameters" in raw["text_config"] and "rope_parameters" in raw["vision_config"]
    assert load_model_config(tmp_path / "new") == config
    assert hash(config) == hash(load_model_config(tmp_path / "new"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_vl_moe"}, "mixtures of experts are not computed"),
        ({"text_config": {"head_dim": None}}, "missing key 'head_dim'"),
        ({"text_config": {"attention_bias": True}}, "attention_bias True is not supported"),
        ({"text_config": {"rope_scaling": {"mrope_section": [7, 5, 4]}}}, "mrope_interleaved"),
        ({"text_config": {"hidden_size": 32}}, "out_hidden_size 64 is not the text's 32"),
        ({"text_config": {"num_hidden_layers": 1}}, "names 2 blocks, but the decoder has 1"),
        ({"vision_config": {"hidden_act": "silu"}}, "only 'gelu_pytorch_tanh'"),
        ({"vision_config": {"num_position_embeddings": 50}}, "50 is not a square number"),
        ({"vision_config": {"rope_parameters": {"rope_theta": 1e6}}}, "rope_theta"),
        ({"vision_config": {"num_heads": 16}}, "divisible by 4"),
        ({"vision_config": {"deepstack_visual_indexes": [1, 4]}}, "numbers of the 4 blocks"),
        ({"vision_config": {"deepstack_visual_indexes": [2, 1]}}, "must be ascending"),
        ({"vision_config": {"deepstack_visual_indexes": []}}, "at least one"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, change, message):
    """A config that asks for another computation is an error of one line, never a silent guess."""
    with pytest.raises(UserError, match=message) as error:
        load_model_config(write(tmp_path, **change))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_videos_are_refused(loaded):
    """Both ways in which one could come: a grid of two frames, and a video placeholder."""
    with pytest.raises(UserError, match="only still images"):
        image_layout((2, 4, 4), loaded.config)
    with pytest.raises(UserError, match="video placeholder"):
        encode_prompt([5, IDS["<|video_pad|>"], 6], [], loaded.config)


def test_pixels_of_another_family_are_refused(tmp_path):
    """A preprocessor_config.json of Qwen2.5-VL beside a Qwen3-VL would shift every patch."""
    folder = tiny_qwen3_vl.make(tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 14}))
    with pytest.raises(UserError, match="patch_size 14, config.json 16"):
        Processor.from_dir(folder)
