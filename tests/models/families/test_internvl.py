"""InternVL3 and InternVL3.5: what the tests over all families do not show."""

from __future__ import annotations

import json

import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.families.internvl.model import image_layout
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from srpo_jax.models.registry import load_model_config
from tests.support import tiny_internvl
from tests.support.families import compile_fast, oracle
from tests.support.tiny import picture
from tests.support.tiny_internvl import IDS, PATCH, TILE, TILE_TOKENS, VOCAB, make

TILES = [1, 7, 3, 4, 7, 5]  # of tiny_internvl.SIZES
SIDE = TILE // PATCH


def change(folder, file: str, **values) -> None:
    """Rewrites keys of a JSON file; a dict is merged into the one that is there."""
    content = json.loads((folder / file).read_text())
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(content))


def processor_of_transformers(folder, monkeypatch):
    """HF's own processor, put together by hand: its loader wants torchvision, for videos alone."""
    from transformers import AutoTokenizer, GotOcr2ImageProcessorPil, processing_utils
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    class VideoSlot:
        model_input_names: list[str] = []

    monkeypatch.setattr(
        processing_utils.transformers_module, "VideoProcessorMixin", VideoSlot, raising=False
    )
    return InternVLProcessor(
        GotOcr2ImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        VideoSlot(),
        image_seq_length=TILE_TOKENS,
        chat_template=tiny_internvl.CHAT_TEMPLATE,
    )


def test_pixels_and_ids_equal_transformers(tmp_path, monkeypatch):
    """Pictures of one tile and of many, before, between and after text; text alone."""
    folder = make(tmp_path)
    theirs, ours = processor_of_transformers(folder, monkeypatch), Processor.from_dir(folder)
    shown = [picture(*size, seed=seed) for seed, size in enumerate(tiny_internvl.SIZES)]
    assert [ours.image(p)[1] for p in shown] == [(n,) for n in TILES]
    for question, pictures in (
        ("What is this?", shown[:1]),
        ("See <image>\n\n<image> and\n <image>: compare.", shown[:3]),
        ("<image><image>  ", shown[3:5]),
        ("And a dot<image>", shown[5:]),
        (" Nothing to see ", []),
    ):
        pieces = question.split("<image>")
        pieces = pieces if len(pieces) > 1 else [""] * len(pictures) + pieces
        content = []
        for number, piece in enumerate(pieces):
            content += [{"type": "image", "image": pictures[number - 1]}] if number else []
            content += [{"type": "text", "text": piece}] if piece else []
        expected = theirs.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="np",
        )
        prompt = ours.encode_question(question, pictures)
        assert prompt.tokens.tolist() == expected["input_ids"][0].tolist()
        if pictures:
            tiles = prompt.patches.reshape(-1, SIDE, SIDE, 3, PATCH, PATCH)
            tiles = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, TILE, TILE)
            assert np.array_equal(tiles, expected["pixel_values"])


@pytest.mark.parametrize("text", ["qwen2", "qwen3"])
def test_the_video_token_needs_no_row(tmp_path, text):
    """InternVL3's <video> lies outside the embedding: never sampled, and never read from text."""
    folder = make(tmp_path, text=text)
    processor = Processor.from_dir(folder)
    assert (IDS["<video>"] in processor.suppress_ids) == (text == "qwen3")
    assert max(processor.suppress_ids) < VOCAB[text]
    assert IDS["<IMG_CONTEXT>"] in processor.suppress_ids
    spelled = "a <video> of <img><IMG_CONTEXT></img>"
    assert processor.decode(processor.encode(spelled)) == spelled
    for ids in (processor.encode(spelled), processor.prompt_tokens(spelled, [])):
        assert max(ids) < IDS["<img>"]
    change(folder, "config.json", text_config={"vocab_size": IDS["</box>"]})
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        Processor.from_dir(folder)


def test_a_tokenizer_that_does_not_name_its_tokens(tmp_path):
    """Copies of InternVL3.5 have <img>, </img> and <video> as tokens, but not as attributes."""
    folder = make(tmp_path, text="qwen3")
    named = Processor.from_dir(folder)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    for name in ("extra_special_tokens", *tiny_internvl.EXTRA_TOKENS):
        del content[name]
    file.write_text(json.dumps(content))
    plain = Processor.from_dir(folder)
    assert not hasattr(plain._tokenizer, "start_image_token")
    assert plain.prompt_tokens("See <image>", [(2,)]) == named.prompt_tokens("See <image>", [(2,)])
    assert plain.suppress_ids == named.suppress_ids


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("preprocessor_config.json", {"size": {"height": 28, "width": 28}}, "tiles of 28 x 28"),
        ("processor_config.json", {"image_seq_length": 256}, "image_seq_length 256"),
        ("config.json", {"image_token_id": 5}, "image_token_id 5"),
    ],
)
def test_files_that_contradict_each_other(tmp_path, file, values, says):
    """One line that says what disagrees."""
    folder = make(tmp_path)
    change(folder, file, **values)
    with pytest.raises(UserError, match=says) as error:
        Processor.from_dir(folder)
    assert "\n" not in str(error.value)


def test_layout_keeps_the_order(tmp_path):
    """Patches, tiles and tokens stay in the processor's order; no tiles are an error."""
    config = load_model_config(make(tmp_path))
    layout = image_layout((3,), config)
    assert layout.order.tolist() == list(range(3 * SIDE**2))
    assert layout.fields["tile_seg"].tolist() == np.repeat([0, 1, 2], SIDE**2).tolist()
    assert layout.token_index.tolist() == list(range(3 * TILE_TOKENS))
    assert layout.features == 3 * TILE_TOKENS
    with pytest.raises(UserError, match="0 tiles"):
        image_layout((0,), config)


@pytest.mark.parametrize(
    ("change_to", "says"),
    [
        ({"vision_config": {"use_qk_norm": True}}, "use_qk_norm True"),
        ({"vision_config": {"norm_type": "rms_norm"}}, "norm_type 'rms_norm'"),
        ({"vision_config": {"attention_bias": False}}, "attention_bias False"),
        ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling False"),
        ({"vision_config": {"image_size": [56, 28]}}, "image_size must be a positive integer"),
        ({"vision_config": {"image_size": [42, 42]}}, "multiple of 2 times patch_size 14"),
        ({"vision_config": {"num_attention_heads": 3}}, "32 over 3 heads"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act 'quick_gelu'"),
        ({"text_config": {"model_type": "llama"}}, "only 'qwen2', 'qwen3'"),
        ({"text_config": {"model_type": "qwen3_moe"}}, "'qwen3_moe' is not supported"),
        ({"downsample_ratio": 0.25}, "downsample_ratio 0.25"),
        ({"vision_feature_layer": -2}, "vision_feature_layer -2"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ({"model_type": "internvl_chat"}, r"InternVL3-8B-hf.*InternVL3_5-8B-HF"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, change_to, says):
    """In one line that names the file, never a silent guess."""
    folder = make(tmp_path)
    change(folder, "config.json", **change_to)
    with pytest.raises(UserError, match=says) as error:
        load_model_config(folder)
    assert "\n" not in str(error.value) and "config.json" in str(error.value)


def test_an_untied_model_saved_again_stays_untied(tmp_path):
    """transformers 5 writes `tie_word_embeddings: true` beside the head that it did not tie."""
    pytest.importorskip("torch")
    source, again = make(tmp_path / "hub"), tmp_path / "again"
    oracle(source).save_pretrained(again)
    raw = json.loads((again / "config.json").read_text())
    assert raw["tie_word_embeddings"] and not raw["text_config"]["tie_word_embeddings"]
    config = load_model_config(again)
    assert config == load_model_config(source) and not config.text.tie_word_embeddings
    ours, theirs = load_params(again, config), load_params(source, config)
    assert np.array_equal(ours["lm_head"]["kernel"], theirs["lm_head"]["kernel"])
    change(again, "config.json", text_config={"tie_word_embeddings": None})
    assert load_model_config(again).text.tie_word_embeddings


def test_dynamic_rope_is_exact_up_to_its_limit(tmp_path):
    """transformers turns faster from max_position_embeddings on; we stop there."""
    torch = pytest.importorskip("torch")
    folder = make(tmp_path / "model")
    tokens = Processor.from_dir(folder).prompt_tokens("What is in this image? " * 3, [])

    def theirs(limit):
        change(folder, "config.json", text_config={"max_position_embeddings": limit})
        oracle.cache_clear()
        with torch.no_grad():
            return oracle(folder)(torch.tensor([tokens])).logits[0].numpy()

    exact = theirs(len(tokens))
    processor = Processor.from_dir(folder)
    assert processor.config.text.max_positions == len(tokens)
    prompt = processor.encode_question("What is in this image? " * 3, [])
    rows = pad_rows([causal_row(prompt)], tokens=len(tokens), patches=SIDE**2)
    model, params = PolicyModel(processor.config), load_params(folder, processor.config)
    hidden = compile_fast(model.apply)({"params": params}, rows)[0]
    np.testing.assert_allclose(hidden @ head_matrix(params, processor.config), exact, atol=1e-4)
    assert np.abs(theirs(len(tokens) - 1) - exact).max() > 0.01
    with pytest.raises(UserError, match=f"{len(tokens)} positions"):
        Processor.from_dir(folder).encode_question("What is in this image? " * 3, [])
