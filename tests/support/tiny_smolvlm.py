"""A tiny random SmolVLM2 or Idefics3 checkpoint folder, complete as on the Hub.

EVERY parameter is random. What the shapes expose: 2 query heads per kv head; tiles of 6x6 patches
in a grid of up to 2x2, so that rows and columns cannot be swapped; for "smolvlm" a shuffle of 2 and
a token for each place in the grid (as SmolVLM-256M, -500M and SmolVLM2 have), for "idefics3" a
shuffle of 3, tiles of 26 pixels of which patches of 4 leave 2 over (as the 384 and 14 of the 2.2B
models leave 6), and places that are spelled out in ordinary tokens (as in SmolVLM-Instruct and
Idefics3-8B). config.json leaves out what the released files leave out.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.tiny import CORPUS, _random, _save_weights, _write

MODEL_TYPE = "smolvlm"
TIED = (False, True)  # all releases are untied

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 64, 2, 4, 2, 96
V_HIDDEN, V_DEPTH, V_HEADS, V_FFN, PATCH, SIDE = 32, 3, 2, 48, 4, 6

BASE_TOKENS = 336  # three special tokens, 256 bytes and the merges learnt from CORPUS
FIRST = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLACES = ("<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)))
IMAGE = ("<fake_token_around_image>", "<image>")
SPECIALS = {
    "smolvlm": (
        *FIRST,
        *PLACES,
        *IMAGE,
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<end_of_utterance>",
    ),
    "idefics3": (*FIRST, *IMAGE, "<end_of_utterance>"),
}
VOCAB = {"smolvlm": 384, "idefics3": 345}  # a few rows have no token
SHUFFLE = {"smolvlm": 2, "idefics3": 3}
TILE = {"smolvlm": SIDE * PATCH, "idefics3": SIDE * PATCH + 2}  # pixels
NAME = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}

SIZES = ((40, 40), (48, 20), (20, 48), (100, 70), (13, 200), (1, 1))

LAYOUTS: dict[str, Callable[[str], str]] = {
    "hub": lambda name: name,
    # Saved from the model without its head.
    "headless": lambda name: name.removeprefix("model."),
}

# What the released template writes: the videos of SmolVLM2 are left out.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}"
    "{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def token_ids(model_type: str = MODEL_TYPE) -> dict[str, int]:
    """Special token -> id."""
    added = [name for name in SPECIALS[model_type] if name not in FIRST]
    ids = {name: i for i, name in enumerate(FIRST)}
    return ids | {name: BASE_TOKENS + i for i, name in enumerate(added)}


def make(
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    tied: bool = TIED[0],
    dtype: str = "float32",
    max_shard_size: int | None = None,
    model_type: str = MODEL_TYPE,
    splitting: bool = True,
) -> pathlib.Path:
    """Writes the folder and returns it.

    dtype: float32, bfloat16 or float16. max_shard_size: bytes; None writes one file, a number
    writes an index and shards. splitting: whether pictures are cut into tiles or shown as one.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    tensors = {}
    for name, shape in shapes(tied=tied, model_type=model_type).items():
        value = _random(rng, name, shape)
        if "position_embedding" in name:
            value *= 3  # as large as the patches that it is added to
        if ".embeddings." in name:
            value *= 0.2  # so small that the first layer norm shows its eps
        tensors[name] = value.astype(kind)
    _save_weights(directory, tensors, max_shard_size)
    _write(directory / "config.json", config(tied=tied, dtype=dtype, model_type=model_type))
    ids, processor_class = token_ids(model_type), f"{NAME[model_type]}Processor"
    _write(
        directory / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids["<|im_end|>"],
        },
    )
    _write(
        directory / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_image_splitting": splitting,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": f"{NAME[model_type]}ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": TILE[model_type]},
            "processor_class": processor_class,
            "resample": 1,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": 2 * TILE[model_type]},
        },
    )
    length = (SIDE // SHUFFLE[model_type]) ** 2
    _write(
        directory / "processor_config.json",
        {"image_seq_len": length, "processor_class": processor_class},
    )
    _write(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _save_tokenizer(directory, model_type)
    return directory


def config(*, tied: bool, dtype: str, model_type: str) -> dict:
    """config.json with the keys that the released files have."""
    return {
        "architectures": [f"{NAME[model_type]}ForConditionalGeneration"],
        "image_token_id": token_ids(model_type)["<image>"],
        "model_type": model_type,
        "pad_token_id": 128002,
        "scale_factor": SHUFFLE[model_type],
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": HIDDEN // HEADS,
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "pad_token_id": token_ids(model_type)["<|im_end|>"],
            "pixel_shuffle_factor": SHUFFLE[model_type],
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            "vocab_size": VOCAB[model_type],
        },
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "transformers_version": "4.47.1",
        "use_cache": True,
        "vision_config": {
            "hidden_size": V_HIDDEN,
            "image_size": TILE[model_type],
            "intermediate_size": V_FFN,
            "max_image_size": {"longest_edge": TILE[model_type]},
            "model_type": f"{model_type}_vision",
            "num_attention_heads": V_HEADS,
            "num_hidden_layers": V_DEPTH,
            "patch_size": PATCH,
            "size": {"longest_edge": 2 * TILE[model_type]},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": VOCAB[model_type],
    }


def shapes(*, tied: bool, model_type: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as in a released checkpoint."""
    out: dict[str, tuple[int, ...]] = {}
    if not tied:
        out["lm_head.weight"] = (VOCAB[model_type], HIDDEN)
    wide = V_HIDDEN * SHUFFLE[model_type] ** 2
    out["model.connector.modality_projection.proj.weight"] = (HIDDEN, wide)
    text, head = "model.text_model.", HIDDEN // HEADS
    out[f"{text}embed_tokens.weight"] = (VOCAB[model_type], HIDDEN)
    for i in range(LAYERS):
        layer = f"{text}layers.{i}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            out[f"{layer}self_attn.{name}_proj.weight"] = (heads * head, HIDDEN)
        out[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HEADS * head)
        out[f"{layer}mlp.gate_proj.weight"] = out[f"{layer}mlp.up_proj.weight"] = (FFN, HIDDEN)
        out[f"{layer}mlp.down_proj.weight"] = (HIDDEN, FFN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{layer}{name}.weight"] = (HIDDEN,)
    out[f"{text}norm.weight"] = (HIDDEN,)

    vision = "model.vision_model."
    out[f"{vision}embeddings.patch_embedding.weight"] = (V_HIDDEN, 3, PATCH, PATCH)
    out[f"{vision}embeddings.patch_embedding.bias"] = (V_HIDDEN,)
    out[f"{vision}embeddings.position_embedding.weight"] = (SIDE**2, V_HIDDEN)
    for i in range(V_DEPTH):
        block = f"{vision}encoder.layers.{i}."
        for name, rows, cols in (
            *((f"self_attn.{n}_proj", V_HIDDEN, V_HIDDEN) for n in ("q", "k", "v", "out")),
            ("mlp.fc1", V_FFN, V_HIDDEN),
            ("mlp.fc2", V_HIDDEN, V_FFN),
        ):
            out[f"{block}{name}.weight"], out[f"{block}{name}.bias"] = (rows, cols), (rows,)
        for name in ("layer_norm1", "layer_norm2"):
            out[f"{block}{name}.weight"] = out[f"{block}{name}.bias"] = (V_HIDDEN,)
    for kind in ("weight", "bias"):
        out[f"{vision}post_layernorm.{kind}"] = (V_HIDDEN,)
    return out


def oracle_inputs(folder: pathlib.Path, tokens: list[int], pictures: list[Image.Image]) -> dict:
    """What transformers' model takes for a batch of one: pixels by its own image processor."""
    import torch
    from transformers import Idefics3ImageProcessorPil, SmolVLMImageProcessorPil

    ids = torch.tensor([list(tokens)], dtype=torch.long)
    inputs = {"input_ids": ids}
    if pictures:
        found = json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))
        kinds = {"smolvlm": SmolVLMImageProcessorPil, "idefics3": Idefics3ImageProcessorPil}
        processor = kinds[found["model_type"]].from_pretrained(folder, local_files_only=True)
        out = processor(images=[pictures], return_tensors="np")
        for name in ("pixel_values", "pixel_attention_mask"):
            inputs[name] = torch.tensor(out[name])
    return inputs


@functools.cache
def _tokenizer(model_type: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(
            vocab_size=BASE_TOKENS,
            special_tokens=list(FIRST),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == BASE_TOKENS
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIALS[model_type]]
    )
    assert all(tokenizer.token_to_id(name) == i for name, i in token_ids(model_type).items())
    return tokenizer


def _save_tokenizer(directory: pathlib.Path, model_type: str) -> None:
    tokenizer = _tokenizer(model_type)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))  # vocab.json and merges.txt
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": name, **plain, "special": True}
            for name, i in token_ids(model_type).items()
        },
        "additional_special_tokens": [*IMAGE, "<end_of_utterance>"],
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<end_of_utterance>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "processor_class": f"{NAME[model_type]}Processor",
        "tokenizer_class": "GPT2Tokenizer",
        "truncation_side": "left",
        "unk_token": "<|endoftext|>",
        "vocab_size": VOCAB[model_type],
    }
    if model_type == "smolvlm":
        named = {
            "end_of_utterance_token": "<end_of_utterance>",
            "fake_image_token": IMAGE[0],
            "global_image_token": PLACES[0],
            "image_token": IMAGE[1],
        }
        settings |= {"extra_special_tokens": named, **named}
    _write(directory / "tokenizer_config.json", settings)
