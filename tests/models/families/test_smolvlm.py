"""SmolVLM and Idefics3: what the tests over all families do not show."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from srpo_jax.errors import UserError
from srpo_jax.models.families.smolvlm.model import (
    CLASS_DEFAULTS,
    LARGEST_SIDE,
    MISPLACED_SIDES,
    VISION_DEFAULTS,
    image_layout,
)
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.registry import load_model_config
from tests.support import tiny_smolvlm
from tests.support.tiny import picture

KINDS = [(kind, splitting) for kind in ("smolvlm", "idefics3") for splitting in (True, False)]


def change(folder, file: str, **values) -> None:
    """Rewrites keys of a JSON file; a dict is merged into the one that is there, None removes."""
    content = json.loads((folder / file).read_text())
    for key, value in values.items():
        if isinstance(value, dict):
            value = {**content[key], **value}
        content[key] = value
        if value is None:
            del content[key]
    (folder / file).write_text(json.dumps(content))


def processor_of_transformers(folder, monkeypatch):
    """HF's own processor, put together by hand.

    SmolVLM's loader wants torchvision and num2words, for videos alone: the slot of the video
    processor is filled with something that is never called, as is num2words.
    """
    from transformers import AutoTokenizer, processing_utils
    from transformers.models.idefics3 import image_processing_pil_idefics3, processing_idefics3
    from transformers.models.smolvlm import image_processing_pil_smolvlm, processing_smolvlm

    class VideoSlot:
        num_frames = fps = None
        model_input_names: list[str] = []

    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = json.loads((folder / "processor_config.json").read_text())["image_seq_len"]
    options = dict(image_seq_len=length, chat_template=tiny_smolvlm.CHAT_TEMPLATE)
    if load_model_config(folder).model_type == "idefics3":
        images = image_processing_pil_idefics3.Idefics3ImageProcessorPil.from_pretrained(folder)
        return processing_idefics3.Idefics3Processor(images, tokenizer, **options)
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda count: pytest.fail("a video"))
    monkeypatch.setattr(
        processing_utils.transformers_module, "VideoProcessorMixin", VideoSlot, raising=False
    )
    images = image_processing_pil_smolvlm.SmolVLMImageProcessorPil.from_pretrained(folder)
    return processing_smolvlm.SmolVLMProcessor(images, tokenizer, VideoSlot(), **options)


@pytest.mark.parametrize(("kind", "splitting"), KINDS)
def test_pixels_and_ids_equal_transformers(tmp_path, monkeypatch, kind, splitting):
    """Pictures before, between and after text, in grids of tiles or whole; text alone."""
    folder = tiny_smolvlm.make(tmp_path, model_type=kind, splitting=splitting)
    oracle, processor = processor_of_transformers(folder, monkeypatch), Processor.from_dir(folder)
    shown = [picture(*size, seed=seed) for seed, size in enumerate(tiny_smolvlm.SIZES)]
    for question, pictures in (
        ("What is this? 1. A knife", shown[:1]),
        ("See <image>\n\n<image> and\n <image>: compare.", shown[:3]),
        ("<image><image>  ", shown[3:5]),
        ("And a dot<image>", shown[5:]),
        (" Nothing to see ", []),
    ):
        grids = [processor.image(p)[1] for p in pictures]
        assert all(bool(rows) == splitting for rows, _ in grids)
        content, pieces = [], question.split("<image>")
        if len(pieces) == 1:
            pieces = [""] * len(pictures) + pieces
        for number, piece in enumerate(pieces):
            content += [{"type": "image", "image": pictures[number - 1]}] if number else []
            content += [{"type": "text", "text": piece}] if piece else []
        theirs = oracle.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="np",
        )
        assert processor.prompt_tokens(question, grids) == theirs["input_ids"][0].tolist()
        if not pictures:
            continue
        side = tiny_smolvlm.SIDE * tiny_smolvlm.PATCH
        ours = np.concatenate([processor.image(p)[0] for p in pictures])
        ours = ours.reshape(-1, tiny_smolvlm.SIDE, tiny_smolvlm.SIDE, 3, 4, 4)
        ours = ours.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, side, side)
        assert np.array_equal(ours, theirs["pixel_values"][0, :, :, :side, :side])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_smolvlm.make(tmp_path_factory.mktemp("smolvlm"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    longest=st.sampled_from((24, 40, 48, 70, 96)),
    resize=st.booleans(),
    splitting=st.booleans(),
)
def test_tiles_are_always_full(folder, size, longest, resize, splitting):
    """So a patch's position is its place in the tile: the processor never makes a partial tile."""
    processor = Processor.from_dir(folder)
    images = processor.images.process
    images.do_resize, images.do_image_splitting = resize, splitting
    images.size = type(images.size)(longest_edge=longest)
    out = images(images=[[Image.new("RGB", size)]], return_tensors="np")
    assert out["pixel_values"].shape[2:] == (3, 24, 24) and out["pixel_attention_mask"].all()
    patches, grid = processor.image(Image.new("RGB", size))
    layout = image_layout(grid, processor.config)
    assert patches.shape == (len(layout.order), processor.config.vision.patch_dim)
    text = processor.images.expansion(grid)
    assert text.count("<image>") == len(layout.token_index) == layout.features
    if not splitting:
        assert grid == (0, 0)


def test_positions_are_those_of_transformers():
    """For every side that is not refused a full tile's patches have positions 0, 1, 2, ..."""
    torch = pytest.importorskip("torch")
    from transformers.models.smolvlm import modeling_smolvlm as theirs

    for side in range(1, LARGEST_SIDE + 1):
        config = theirs.SmolVLMVisionConfig(hidden_size=1, image_size=side, patch_size=1)
        embed = theirs.SmolVLMVisionEmbeddings(config)
        with torch.no_grad():
            embed.patch_embedding.weight.zero_()
            embed.patch_embedding.bias.zero_()
            embed.position_embedding.weight.copy_(torch.arange(side * side)[:, None])
            mask = torch.ones(1, side, side, dtype=torch.bool)
            found = embed(torch.zeros(1, 3, side, side), mask).flatten()
        plain = found.tolist() == list(range(side * side))
        assert plain == (side not in MISPLACED_SIDES), side
    assert not MISPLACED_SIDES & {26, 27, 32}  # of the releases


@pytest.mark.parametrize("name", ["SmolVLM", "Idefics3"])
def test_class_defaults_are_those_of_transformers(name):
    """What a key that the file leaves out means."""
    transformers = pytest.importorskip("transformers")
    vision = getattr(transformers, f"{name}VisionConfig")()
    root = getattr(transformers, f"{name}Config")()
    assert {key: getattr(vision, key) for key in VISION_DEFAULTS} == VISION_DEFAULTS
    assert {key: getattr(root, key) for key in CLASS_DEFAULTS} == CLASS_DEFAULTS


def test_a_sparse_config_means_the_class_defaults(folder, tmp_path):
    """Read from the defaults as from a file that spells them out."""
    spelled = {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    tiny_smolvlm.make(tmp_path)
    assert not set(spelled) & set(json.loads((folder / "config.json").read_text())["vision_config"])
    change(tmp_path, "config.json", vision_config=spelled)
    assert load_model_config(tmp_path) == load_model_config(folder)
    change(tmp_path, "config.json", scale_factor=None)
    assert load_model_config(tmp_path) == load_model_config(folder)  # 2 by default
    change(tmp_path, "config.json", vision_config={"layer_norm_eps": 1e-5})
    assert load_model_config(tmp_path).vision.eps == 1e-5


@pytest.mark.parametrize(
    ("root", "nested", "tied"),
    [
        (True, False, True),
        (False, True, False),
        (None, True, False),
        (None, None, False),
    ],
)
def test_only_the_root_ties_the_head(tmp_path, root, nested, tied):
    """As in transformers, where text_config's key is that of a model of its own."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    tiny_smolvlm.make(tmp_path, tied=True)  # no head in the file
    change(tmp_path, "config.json", tie_word_embeddings=root)
    if nested is not None:
        change(tmp_path, "config.json", text_config={"tie_word_embeddings": nested})
    model = transformers.SmolVLMForConditionalGeneration.from_pretrained(tmp_path)
    embedding = model.get_input_embeddings().weight
    assert (model.lm_head.weight is embedding) == tied
    assert load_model_config(tmp_path).text.tie_word_embeddings == tied


def test_tokens_around_pictures_are_never_sampled(folder, tmp_path):
    """Neither where places have tokens nor where they are spelled out; an eos can be."""
    for kind, path in (("smolvlm", folder), ("idefics3", tmp_path)):
        processor = Processor.from_dir(tiny_smolvlm.make(path, model_type=kind))
        ids = tiny_smolvlm.token_ids(kind)
        around = {"<image>", "<fake_token_around_image>", *tiny_smolvlm.PLACES} & set(ids)
        unused = set(range(max(ids.values()) + 1, tiny_smolvlm.VOCAB[kind]))
        expected = {ids[name] for name in around} | {ids["<|im_end|>"]} | unused
        assert set(processor.suppress_ids) == expected and unused
        assert processor.eos_ids == (ids["<end_of_utterance>"],)


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("config.json", {"scale_factor": 4}, "multiple of scale_factor 4"),
        ("config.json", {"vision_config": {"image_size": 16}}, "max_image_size 24"),
        ("config.json", {"vision_config": {"image_size": 100}, "scale_factor": 5}, "25 patches"),
        ("config.json", {"vision_config": {"image_size": 264}}, "66 patches"),
        ("config.json", {"vision_config": {"hidden_act": "gelu"}}, "hidden_act 'gelu'"),
        ("config.json", {"vision_config": {"num_attention_heads": 3}}, "over 3 heads"),
        ("config.json", {"text_config": {"model_type": "mistral"}}, "model_type 'mistral'"),
        ("config.json", {"text_config": None}, "missing key 'text_config'"),
        ("config.json", {"image_token_id": 373}, "image_token_id 373"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 48}}, "max_image_size 48"),
        ("processor_config.json", {"image_seq_len": 169}, "image_seq_len 169"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path, file, values, says):
    """One line that names the file and the key."""
    tiny_smolvlm.make(tmp_path)
    change(tmp_path, file, **values)
    with pytest.raises(UserError, match=says) as error:
        Processor.from_dir(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_layout_of_a_grid(folder):
    """Tiles and the whole picture, nothing reordered; impossible grids are refused."""
    config = load_model_config(folder)
    for grid, tiles in (((0, 0), 1), ((1, 2), 3), ((3, 2), 7)):
        layout = image_layout(grid, config)
        assert layout.order.tolist() == list(range(36 * tiles))
        assert layout.token_index.tolist() == list(range(9 * tiles))
        assert layout.features == 9 * tiles
        assert layout.fields["tile_seg"].tolist() == np.repeat(np.arange(tiles), 36).tolist()
    for grid in ((0, 2), (2, 0), (-1, -1)):
        with pytest.raises(UserError, match="tile grid"):
            image_layout(grid, config)
    coarse = dataclasses.replace(config.vision, shuffle=3)
    assert image_layout((2, 2), dataclasses.replace(config, vision=coarse)).features == 20
