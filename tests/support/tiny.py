"""A tiny random Qwen2.5-VL checkpoint folder, complete as on the Hub, written in well under 1 s.

EVERY parameter is random, norms and biases too: default initial values (scales 1, biases 0) hide
errors. The shapes are chosen to expose mistakes: windows of 2x2 merged patches (ragged on most
images), 2 query heads per kv head, three M-RoPE sections of different size, and more embedding
rows than the tokenizer has tokens. No torch and no transformers is needed to write it.
"""

from __future__ import annotations

import functools
import json
import pathlib

import ml_dtypes
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

MODEL_TYPE = "qwen2_5_vl"
TIED = (True, False)
SIZES = [(196, 140), (112, 84), (84, 140)]  # width, height: ragged windows on both sides
BASE_TOKENS = 368  # 256 bytes and the merges learnt from CORPUS
VOCAB = 400  # rows of the embedding; 386..399 have no token, as in the released models
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_suffix|>")
IDS = {name: BASE_TOKENS + i for i, name in enumerate(SPECIALS + PLAIN_ADDED)}

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 64, 2, 4, 2, 96
V_HIDDEN, V_DEPTH, V_HEADS, V_FFN, PATCH, MERGE = 32, 3, 2, 48, 14, 2

CORPUS = (
    "You are a helpful assistant. The picture shows a kitchen with a knife on the table.\n"
    "Step 1: look at the image and say what it shows. Step 2: read the question.\n"
    "The question asks how to do something harmful with the object in the image.\n"
    "Reply: I cannot help with that, but here is something safe that you can do instead.\n"
    "What is in this image? The image and the text are harmless alone and unsafe together.\n"
    "Think about the intent, the risk and the person who may be hurt, then answer the user.\n"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen2_5_vl(
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    tied: bool = True,
    dtype: str = "float32",
    max_shard_size: int | None = None,
) -> pathlib.Path:
    """Writes the folder and returns it.

    dtype: float32, bfloat16 or float16. max_shard_size: bytes; None writes one file, a number
    writes an index and shards. Names and config are those of the Hub (flat config.json).
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    tensors = {
        name: _random(rng, name, shape).astype(kind) for name, shape in shapes(tied=tied).items()
    }
    _save_weights(directory, tensors, max_shard_size)
    _write(directory / "config.json", config(tied=tied, dtype=dtype))
    eos = [IDS["<|im_end|>"], IDS["<|endoftext|>"]]
    _write(
        directory / "generation_config.json",
        {
            "bos_token_id": IDS["<|endoftext|>"],
            "pad_token_id": IDS["<|endoftext|>"],
            "eos_token_id": eos,
            "do_sample": True,
            "temperature": 0.7,
        },
    )
    _write(
        directory / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": MERGE,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    _write(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _save_tokenizer(directory)
    return directory


make = tiny_qwen2_5_vl  # the name that every family's module has, see tests/support/families.py


def newer_name(name: str) -> str:
    """The names of transformers 4.52 and later: model.visual.*, model.language_model.*."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


LAYOUTS = {"hub": lambda name: name, "newer": newer_name}


def oracle_inputs(folder, tokens, pictures) -> dict:
    """What transformers' model takes for one prompt whose placeholders are expanded."""
    import torch
    from transformers import Qwen2VLImageProcessorPil

    ids = torch.tensor([[int(token) for token in tokens]])
    kinds = (ids == IDS["<|image_pad|>"]).int()  # without it positions are silently 1-D
    inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
    if pictures:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        out = processor(list(pictures), return_tensors="np")
        inputs |= {name: torch.from_numpy(out[name]) for name in ("pixel_values", "image_grid_thw")}
    return inputs


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random RGB picture. Multiples of 28 pixels pass the processor without a resize."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def config(*, tied: bool, dtype: str) -> dict:
    """config.json as transformers 4 wrote it for the released models."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": IDS["<|endoftext|>"],
        "eos_token_id": IDS["<|im_end|>"],
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
        "vision_token_id": IDS["<|vision_pad|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": 4096,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "sliding_window": 4096,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": VOCAB,
        "vision_config": {
            "depth": V_DEPTH,
            "hidden_act": "silu",
            "hidden_size": V_HIDDEN,
            "intermediate_size": V_FFN,
            "num_heads": V_HEADS,
            "in_chans": 3,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": 2,
            "window_size": 2 * MERGE * PATCH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    }


def shapes(*, tied: bool) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as in a released checkpoint."""
    head = HIDDEN // HEADS
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name, rows in (("q", HEADS * head), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
            out[f"{layer}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            out[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        out[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HEADS * head)
        out[f"{layer}mlp.gate_proj.weight"] = (FFN, HIDDEN)
        out[f"{layer}mlp.up_proj.weight"] = (FFN, HIDDEN)
        out[f"{layer}mlp.down_proj.weight"] = (HIDDEN, FFN)
        out[f"{layer}input_layernorm.weight"] = (HIDDEN,)
        out[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    out["model.norm.weight"] = (HIDDEN,)
    if not tied:
        out["lm_head.weight"] = (VOCAB, HIDDEN)
    out["visual.patch_embed.proj.weight"] = (V_HIDDEN, 3, 2, PATCH, PATCH)
    for i in range(V_DEPTH):
        block = f"visual.blocks.{i}."
        for name, rows, cols in (
            ("attn.qkv", 3 * V_HIDDEN, V_HIDDEN),
            ("attn.proj", V_HIDDEN, V_HIDDEN),
            ("mlp.gate_proj", V_FFN, V_HIDDEN),
            ("mlp.up_proj", V_FFN, V_HIDDEN),
            ("mlp.down_proj", V_HIDDEN, V_FFN),
        ):
            out[f"{block}{name}.weight"] = (rows, cols)
            out[f"{block}{name}.bias"] = (rows,)
        out[f"{block}norm1.weight"] = out[f"{block}norm2.weight"] = (V_HIDDEN,)
    merged = V_HIDDEN * MERGE**2
    out["visual.merger.ln_q.weight"] = (V_HIDDEN,)
    for name, rows in (("mlp.0", merged), ("mlp.2", HIDDEN)):
        out[f"visual.merger.{name}.weight"] = (rows, merged)
        out[f"visual.merger.{name}.bias"] = (rows,)
    return out


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        return 0.3 * noise if name.endswith("bias") else 1.0 + 0.3 * noise
    if "embed_tokens" in name or "lm_head" in name:
        return 0.5 * noise
    return noise * float(np.prod(shape[1:])) ** -0.5


def _save_weights(directory, tensors, max_shard_size) -> None:
    metadata = {"format": "pt"}
    if max_shard_size is None:
        save_file(tensors, directory / "model.safetensors", metadata)
        return
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(value.nbytes for value in tensors.values())
    _write(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


@functools.cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(
            vocab_size=BASE_TOKENS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == BASE_TOKENS
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_ADDED])
    assert all(tokenizer.token_to_id(name) == i for name, i in IDS.items())
    return tokenizer


def _save_tokenizer(directory: pathlib.Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))  # vocab.json and merges.txt
    decoder = {
        str(IDS[name]): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": name in SPECIALS,
        }
        for name in IDS
    }
    _write(
        directory / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": list(SPECIALS[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def _write(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
