"""A tiny random LLaVA-NeXT (1.6) checkpoint folder, complete as on the Hub.

As tests/support/tiny_llava.py, with `image_newline`, pictures cut into tiles, and either of the
released decoders: Mistral (grouped queries) or Vicuna (Llama).
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from tests.support.tiny_llava import (
    FFN,
    HEADS,
    HIDDEN,
    IDS,
    IMAGE,
    KV_HEADS,
    LAYERS,
    LAYOUTS,
    VOCAB,
    save,
    vision_config,
    write_processor,
)
from tests.support.tiny_llava import config as llava_config
from tests.support.tiny_llava import shapes as llava_shapes

MODEL_TYPE = "llava_next"
TIED = (False, True)
__all__ = ["IDS", "LAYOUTS", "MODEL_TYPE", "SIZES", "TIED", "make", "oracle_inputs"]

PINPOINTS = [[r * IMAGE, c * IMAGE] for r, c in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]

# Every arrangement of tiles; padding cut away at top and bottom, at the sides, unevenly (an odd
# number of rows or columns of patches is padding), and so much that no row of the tiles is left.
SIZES = [
    (90, 60),
    (13, 90),
    (56, 168),
    (100, 84),
    (84, 100),
    (60, 90),
    (56, 56),
    (112, 56),
    (56, 112),
    (168, 56),
    (300, 90),
    (90, 300),
    (1, 1),
    (641, 479),
    (400, 20),
]

# The released Mistral template: pictures first, then texts, between [INST] and [/INST].
MISTRAL_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% endif %}{% endfor %}"
)
VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'][0]['text'] + '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def make(
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    tied: bool = TIED[0],
    dtype: str = "float32",
    max_shard_size: int | None = None,
    decoder: str = "mistral",
) -> pathlib.Path:
    """Writes the folder and returns it. decoder: "mistral" or "llama"; else as in tiny_llava."""
    raw = config(tied=tied, dtype=dtype, decoder=decoder)
    template = MISTRAL_TEMPLATE if decoder == "mistral" else VICUNA_TEMPLATE
    tensors = llava_shapes(raw) | {"image_newline": (HIDDEN,)}
    directory = save(directory, raw, tensors, seed, dtype, max_shard_size, template)
    write_processor(
        directory,
        "LlavaNextProcessor",
        "LlavaNextImageProcessor",
        "default",
        aspect_ratio_setting="anyres",
        do_pad=True,
        image_grid_pinpoints=PINPOINTS,
    )
    return directory


def config(*, tied: bool, dtype: str, decoder: str) -> dict:
    """config.json as of llava-v1.6-mistral-7b-hf or llava-v1.6-vicuna-13b-hf."""
    raw = llava_config(tied=tied, dtype=dtype)
    del raw["pad_token_id"]
    raw |= {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": PINPOINTS,
        "model_type": "llava_next",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": vision_config(),
    }
    if decoder == "mistral":
        raw["text_config"] = {
            "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
            "architectures": ["MistralForCausalLM"],
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "vocab_size": VOCAB,
        }
    return raw


def oracle_inputs(folder, tokens, pictures: list[Image.Image]) -> dict:
    """The inputs of transformers' model for one row: token ids (expanded) and PIL pictures."""
    import torch
    from transformers import LlavaNextImageProcessorPil

    ids = torch.tensor([[int(i) for i in tokens]])
    inputs = {"input_ids": ids}
    if pictures:
        processor = LlavaNextImageProcessorPil.from_pretrained(folder)
        shown = processor([p.convert("RGB") for p in pictures], return_tensors="np")
        inputs["pixel_values"] = torch.tensor(shown["pixel_values"])
        inputs["image_sizes"] = torch.tensor(np.array(shown["image_sizes"]))
    return inputs
