"""A tiny random Qwen3-VL (dense) checkpoint folder, complete as on the Hub.

EVERY parameter is random. What the shapes expose: a head size that is not hidden / heads, three
M-RoPE sections of different size, a position table (7x7) that some pictures shrink and others
stretch, DeepStack after blocks 1 and 2 of 4 (so blocks lie before, between and after) into 2 of 3
decoder layers, and more embedding rows than the tokenizer has tokens.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from tests.support import tiny
from tests.support.tiny import KV_HEADS, SPECIALS, VOCAB, _random, _save_weights, _write

MODEL_TYPE = "qwen3_vl"
TIED = (True, False)  # 2B and 4B are tied, 8B and 32B are not
PLAIN_ADDED = ("<tool_response>", "</tool_response>", "<think>", "</think>")
IDS = tiny.IDS | {name: len(tiny.IDS) + tiny.BASE_TOKENS + i for i, name in enumerate(PLAIN_ADDED)}

HIDDEN, LAYERS, HEADS, HEAD_DIM, FFN = 64, 3, 4, 32, 96
SECTION = (7, 5, 4)
THETA = 500  # not 5000000: the slowest frequencies must turn enough to tell height from width
V_HIDDEN, V_DEPTH, V_HEADS, V_FFN, PATCH, MERGE, TABLE = 32, 4, 2, 48, 16, 2, 49
DEEPSTACK = (1, 2)

SIZES = ((160, 96), (96, 64), (64, 224), (100, 75))  # the last one needs a resize

LAYOUTS: dict[str, Callable[[str], str]] = {
    "hub": lambda name: name,
    # Saved from the model without its head.
    "headless": lambda name: name.removeprefix("model."),
}

# The released template without tools: unlike Qwen2.5-VL's it adds no system turn of its own.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make(
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    tied: bool = TIED[0],
    dtype: str = "float32",
    max_shard_size: int | None = None,
) -> pathlib.Path:
    """Writes the folder and returns it.

    dtype: float32, bfloat16 or float16. max_shard_size: bytes; None writes one file, a number
    writes an index and shards.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    tensors = {}
    for name, shape in shapes(tied=tied).items():
        value = _random(rng, name, shape)
        if "pos_embed" in name:
            value *= 3  # as large as the patches that it is added to
        tensors[name] = value.astype(kind)
    _save_weights(directory, tensors, max_shard_size)
    _write(directory / "config.json", config(tied=tied, dtype=dtype))
    _write(
        directory / "generation_config.json",
        {
            "bos_token_id": IDS["<|endoftext|>"],
            "pad_token_id": IDS["<|endoftext|>"],
            "eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    )
    pixels = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    _write(
        directory / "preprocessor_config.json",
        {
            "size": {"longest_edge": 256 * 1024, "shortest_edge": 64 * 64},
            **pixels,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
    )
    _write(
        directory / "video_preprocessor_config.json",
        {
            "size": {"longest_edge": 256 * 1024, "shortest_edge": 64 * 64},
            **pixels,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    )
    _write(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _save_tokenizer(directory)
    return directory


def config(*, tied: bool, dtype: str) -> dict:
    """config.json as the released files have it."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": IDS["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": IDS["<|endoftext|>"],
            "dtype": dtype,
            "eos_token_id": IDS["<|im_end|>"],
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": FFN,
            "max_position_embeddings": 4096,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": list(SECTION),
                "rope_type": "default",
            },
            "rope_theta": THETA,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": VOCAB,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": IDS["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": list(DEEPSTACK),
            "depth": V_DEPTH,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": V_HIDDEN,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": V_FFN,
            "model_type": "qwen3_vl",
            "num_heads": V_HEADS,
            "num_position_embeddings": TABLE,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": IDS["<|vision_end|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
    }


def shapes(*, tied: bool) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as in a released checkpoint."""
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, cols: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (rows, cols), (rows,)

    def layer_norm(name: str, size: int) -> None:
        out[f"{name}.weight"] = out[f"{name}.bias"] = (size,)

    text = "model.language_model."
    out[f"{text}embed_tokens.weight"] = (VOCAB, HIDDEN)
    for i in range(LAYERS):
        layer = f"{text}layers.{i}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            out[f"{layer}self_attn.{name}_proj.weight"] = (heads * HEAD_DIM, HIDDEN)
        out[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        for name in ("q_norm", "k_norm"):
            out[f"{layer}self_attn.{name}.weight"] = (HEAD_DIM,)
        out[f"{layer}mlp.gate_proj.weight"] = out[f"{layer}mlp.up_proj.weight"] = (FFN, HIDDEN)
        out[f"{layer}mlp.down_proj.weight"] = (HIDDEN, FFN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{layer}{name}.weight"] = (HIDDEN,)
    out[f"{text}norm.weight"] = (HIDDEN,)
    if not tied:
        out["lm_head.weight"] = (VOCAB, HIDDEN)

    visual, merged = "model.visual.", V_HIDDEN * MERGE**2
    out[f"{visual}patch_embed.proj.weight"] = (V_HIDDEN, 3, 2, PATCH, PATCH)
    out[f"{visual}patch_embed.proj.bias"] = (V_HIDDEN,)
    out[f"{visual}pos_embed.weight"] = (TABLE, V_HIDDEN)
    for i in range(V_DEPTH):
        block = f"{visual}blocks.{i}."
        layer_norm(block + "norm1", V_HIDDEN)
        layer_norm(block + "norm2", V_HIDDEN)
        linear(block + "attn.qkv", 3 * V_HIDDEN, V_HIDDEN)
        linear(block + "attn.proj", V_HIDDEN, V_HIDDEN)
        linear(block + "mlp.linear_fc1", V_FFN, V_HIDDEN)
        linear(block + "mlp.linear_fc2", V_HIDDEN, V_FFN)
    mergers = [(f"deepstack_merger_list.{i}", merged) for i in range(len(DEEPSTACK))]
    for merger, normed in [("merger", V_HIDDEN), *mergers]:
        layer_norm(f"{visual}{merger}.norm", normed)
        linear(f"{visual}{merger}.linear_fc1", merged, merged)
        linear(f"{visual}{merger}.linear_fc2", HIDDEN, merged)
    return out


def oracle_inputs(folder: pathlib.Path, tokens: list[int], pictures: list[Image.Image]) -> dict:
    """What transformers' model takes for a batch of one: pixels by its own image processor."""
    import torch
    from transformers import Qwen2VLImageProcessorPil

    ids = torch.tensor([list(tokens)], dtype=torch.long)
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IDS["<|image_pad|>"]).int()}
    if pictures:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        out = processor(images=pictures, return_tensors="np")
        inputs["pixel_values"] = torch.tensor(out["pixel_values"])
        inputs["image_grid_thw"] = torch.tensor(out["image_grid_thw"])
    return inputs


def _save_tokenizer(directory: pathlib.Path) -> None:
    """Qwen2.5's tokenizer, the tokens that Qwen3 adds, and the template a second time."""
    tiny._save_tokenizer(directory)
    file = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_ADDED])
    tokenizer.save(file)
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    plain = settings["added_tokens_decoder"][str(IDS["<tool_call>"])]
    for name in PLAIN_ADDED:
        assert tokenizer.token_to_id(name) == IDS[name]
        settings["added_tokens_decoder"][str(IDS[name])] = {**plain, "content": name}
    settings |= {"chat_template": CHAT_TEMPLATE, "model_max_length": 262144}
    assert settings["additional_special_tokens"] == list(SPECIALS[1:])
    _write(directory / "tokenizer_config.json", settings)
