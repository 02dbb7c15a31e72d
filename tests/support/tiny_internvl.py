"""A tiny random InternVL3 (`text="qwen2"`) or InternVL3.5 ("qwen3") folder, complete as on the Hub.

EVERY parameter is random: class token, positions and LayerScale too. What is odd is odd on the Hub:
* InternVL3 has as many embedding rows as tokens, an odd number, and one token
  more, `<video>`, whose id lies outside the embedding. InternVL3.5 has more rows than tokens.
* The decoder is untied. InternVL3 has no key `tie_word_embeddings` at all, and transformers' class
  default is true.
* preprocessor_config.json says `crop_to_patches: false`, and the processor cuts tiles all the same.
No torch and no transformers is needed to write it.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import AddedToken, Tokenizer

from tests.support import tiny
from tests.support.tiny import BASE_TOKENS, FFN, HEADS, HIDDEN, KV_HEADS, LAYERS

MODEL_TYPE = "internvl"
TIED = (False, True)  # no released model is tied

IMAGE_TOKENS = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<video>",
)
IDS = tiny.IDS | {token: BASE_TOKENS + 18 + i for i, token in enumerate(IMAGE_TOKENS)}
VOCAB = {"qwen2": IDS["<video>"], "qwen3": IDS["<video>"] + 7}  # 395 and 402 rows
HEAD_DIM = {"qwen2": HIDDEN // HEADS, "qwen3": 24}  # 4 * 24 is not the hidden size
EXTRA_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "start_image_token": "<img>",
    "video_token": "<video>",
}

V_HIDDEN, V_DEPTH, V_HEADS, V_FFN, PATCH, TILE = 32, 3, 2, 48, 14, 56
TILE_TOKENS = (TILE // PATCH // 2) ** 2
MAX_TILES = 6

# (width, height). They become 1x1, 3x2, 2x1, 1x3, 3x2 and 2x2 tiles, and a thumbnail unless 1x1.
SIZES = [(56, 56), (40, 30), (130, 61), (50, 170), (300, 200), (140, 126)]

LAYOUTS = {
    "hub": lambda name: name,
    # transformers' names in memory, which some of its versions and other tools write
    "memory": lambda name: (
        "lm_head.weight"
        if name == "language_model.lm_head.weight"
        else "model." + name.replace("language_model.model.", "language_model.")
    ),
}

# One newline behind every picture, no system prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>{{ '\\n' }}"
    "{% elif part['type'] == 'video' %}<video>{{ '\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)


def make(
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    tied: bool = TIED[0],
    dtype: str = "float32",
    max_shard_size: int | None = None,
    text: str = "qwen2",
) -> pathlib.Path:
    """Writes the folder and returns it. Arguments as of tiny.tiny_qwen2_5_vl; text: the decoder."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    tensors = {
        name: _random(rng, name, shape).astype(kind)
        for name, shape in shapes(tied=tied, text=text).items()
    }
    tiny._save_weights(directory, tensors, max_shard_size)
    write = functools.partial(_write, directory)
    write("config.json", config(tied=tied, dtype=dtype, text=text))
    eos = {"bos_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"]}
    write("generation_config.json", {"_from_model_config": True, **eos})
    write(
        "processor_config.json",
        {
            "image_seq_length": TILE_TOKENS,
            "processor_class": "InternVLProcessor",
        },
    )
    write(
        "preprocessor_config.json",
        {
            "crop_size": None,
            "crop_to_patches": False,
            "data_format": "channels_first",
            "default_to_square": True,
            "do_center_crop": None,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "image_std": [0.229, 0.224, 0.225],
            "max_patches": MAX_TILES,
            "min_patches": 1,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": TILE, "width": TILE},
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _save_tokenizer(directory)
    return directory


def config(*, tied: bool, dtype: str, text: str) -> dict[str, Any]:
    """config.json as transformers 4 wrote it for the released models."""
    decoder = {
        "attention_dropout": 0.0,
        "bos_token_id": IDS["<|endoftext|>"],
        "eos_token_id": IDS["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": 4096,
        "max_window_layers": 70,
        "model_type": text,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB[text],
    }
    if text == "qwen2":
        decoder["architectures"] = ["Qwen2ForCausalLM"]
        decoder["rope_scaling"] = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
        decoder |= {"tie_word_embeddings": True} if tied else {}
    else:
        decoder["architectures"] = ["Qwen3ForCausalLM"]
        decoder |= {"attention_bias": False, "head_dim": HEAD_DIM[text], "rope_scaling": None}
        decoder |= {"layer_types": ["full_attention"] * LAYERS, "tie_word_embeddings": tied}
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": TILE_TOKENS,
        "image_token_id": IDS["<IMG_CONTEXT>"],
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": decoder,
        "torch_dtype": dtype,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": V_HIDDEN,
            "image_size": [TILE, TILE],
            "initializer_factor": 0.1,
            "initializer_range": 1e-10,
            "intermediate_size": V_FFN,
            "layer_norm_eps": 1e-06,
            "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": V_HEADS,
            "num_channels": 3,
            "num_hidden_layers": V_DEPTH,
            "patch_size": [PATCH, PATCH],
            "projection_dropout": 0.0,
            "torch_dtype": dtype,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def shapes(*, tied: bool, text: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as in a released checkpoint."""
    d = HEAD_DIM[text]
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = (rows, columns)
        if bias:
            out[f"{name}.bias"] = (rows,)

    def norm(name: str, size: int) -> None:
        out[f"{name}.weight"] = out[f"{name}.bias"] = (size,)

    out["language_model.model.embed_tokens.weight"] = (VOCAB[text], HIDDEN)
    for i in range(LAYERS):
        layer = f"language_model.model.layers.{i}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            linear(f"{layer}self_attn.{name}_proj", heads * d, HIDDEN, bias=text == "qwen2")
            if text == "qwen3" and name != "v":
                out[f"{layer}self_attn.{name}_norm.weight"] = (d,)
        linear(f"{layer}self_attn.o_proj", HIDDEN, HEADS * d, bias=False)
        linear(f"{layer}mlp.gate_proj", FFN, HIDDEN, bias=False)
        linear(f"{layer}mlp.up_proj", FFN, HIDDEN, bias=False)
        linear(f"{layer}mlp.down_proj", HIDDEN, FFN, bias=False)
        out[f"{layer}input_layernorm.weight"] = (HIDDEN,)
        out[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    out["language_model.model.norm.weight"] = (HIDDEN,)
    if not tied:
        out["language_model.lm_head.weight"] = (VOCAB[text], HIDDEN)
    out["vision_tower.embeddings.cls_token"] = (1, 1, V_HIDDEN)
    out["vision_tower.embeddings.position_embeddings"] = (1, (TILE // PATCH) ** 2 + 1, V_HIDDEN)
    out["vision_tower.embeddings.patch_embeddings.projection.weight"] = (V_HIDDEN, 3, PATCH, PATCH)
    out["vision_tower.embeddings.patch_embeddings.projection.bias"] = (V_HIDDEN,)
    for i in range(V_DEPTH):
        block = f"vision_tower.encoder.layer.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "projection_layer"):
            linear(f"{block}attention.{name}", V_HIDDEN, V_HIDDEN)
        linear(f"{block}mlp.fc1", V_FFN, V_HIDDEN)
        linear(f"{block}mlp.fc2", V_HIDDEN, V_FFN)
        norm(f"{block}layernorm_before", V_HIDDEN)
        norm(f"{block}layernorm_after", V_HIDDEN)
        out[f"{block}lambda_1"] = out[f"{block}lambda_2"] = (V_HIDDEN,)
    norm("multi_modal_projector.layer_norm", 4 * V_HIDDEN)
    linear("multi_modal_projector.linear_1", HIDDEN, 4 * V_HIDDEN)
    linear("multi_modal_projector.linear_2", HIDDEN, HIDDEN)
    return out


def oracle_inputs(folder, tokens, pictures) -> dict:
    """What transformers' model takes for one prompt: expanded token ids, PIL pictures."""
    import torch
    from transformers import GotOcr2ImageProcessorPil

    inputs = {"input_ids": torch.tensor([list(tokens)], dtype=torch.long)}
    if pictures:
        processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
        # InternVLProcessor passes crop_to_patches at every call, whatever the file says.
        out = processor(images=list(pictures), return_tensors="np", crop_to_patches=True)
        inputs["pixel_values"] = torch.tensor(out["pixel_values"])
    return inputs


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.startswith("vision_tower.embeddings.") or "lambda_" in name:
        # Small, so that the norms divide by something that their eps (1e-6, 1e-5) changes.
        noise = 0.1 * rng.standard_normal(shape).astype(np.float32)
        return noise * 588**-0.5 if "projection.weight" in name else noise
    return tiny._random(rng, name, shape)


@functools.cache
def _tokenizer() -> Tokenizer:
    """Qwen's tokenizer of tiny.py and InternVL's tokens behind it."""
    tokenizer = Tokenizer.from_str(tiny._tokenizer().to_str())
    added = [AddedToken(t, special=True, normalized=False) for t in IMAGE_TOKENS]
    tokenizer.add_special_tokens(added)
    assert all(tokenizer.token_to_id(name) == i for name, i in IDS.items())
    return tokenizer


def _save_tokenizer(directory: pathlib.Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))  # vocab.json and merges.txt
    special = (*tiny.SPECIALS, *IMAGE_TOKENS)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(i): {"content": name, **flags, "special": name in special} for name, i in IDS.items()
    }
    _write(directory, "added_tokens.json", IDS)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    listed = [*tiny.SPECIALS[1:], *IMAGE_TOKENS[:-1]]
    _write(
        directory,
        "special_tokens_map.json",
        {"additional_special_tokens": listed, **EXTRA_TOKENS, **names},
    )
    _write(
        directory,
        "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": listed,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "extra_special_tokens": EXTRA_TOKENS,
            "model_max_length": 8192,
            "processor_class": "InternVLProcessor",
            "return_token_type_ids": False,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
            **EXTRA_TOKENS,
            **names,
        },
    )


def _write(directory: pathlib.Path, name: str, value: dict) -> None:
    tiny._write(directory / name, value)
