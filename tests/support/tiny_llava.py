"""A tiny random LLaVA-1.5 checkpoint folder (`model_type` llava), complete as on the Hub.

EVERY parameter is random, also those that the model never uses (the last vision block and the norm
after it). Keys that the released config.json leaves out are left out here too. The tokenizer is of
the Llama-2 kind: byte fallback, a space put before every piece of text, and a <s> before it all.
No torch and no transformers is needed to write it. tests/support/tiny_llava_next.py builds on this
file.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.support.tiny import CORPUS, _random, _save_weights, _write

MODEL_TYPE = "llava"
TIED = (False, True)

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 64, 2, 4, 2, 96
V_HIDDEN, V_DEPTH, V_HEADS, V_FFN, PATCH, IMAGE = 32, 3, 2, 48, 14, 56
V_TOKENS = (IMAGE // PATCH) ** 2
BASE_TOKENS, VOCAB = 390, 400  # of the tokenizer without <image> and <pad>; rows of the embedding
IDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": BASE_TOKENS, "<pad>": BASE_TOKENS + 1}
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

# Square, and cropped at two sides or at the other two, with and without a resize.
SIZES = [(112, 84), (84, 140), (56, 56), (30, 90), (57, 56), (1, 1), (200, 13), (641, 479)]

# Pictures before texts, whatever their order in the message; a space after every text; the role in
# capitals. {% generation %} needs the extension that transformers gives to templates.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make(
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    tied: bool = TIED[0],
    dtype: str = "float32",
    max_shard_size: int | None = None,
    strategy: str = "default",
    feature_layer: int = -2,
    projector_bias: bool = True,
) -> pathlib.Path:
    """Writes the folder and returns it.

    dtype: float32, bfloat16 or float16. max_shard_size: bytes; None writes one file.
    strategy, feature_layer, projector_bias: the keys of config.json that say which features of the
    vision tower are shown, and whether the projector has biases.
    """
    raw = config(tied=tied, dtype=dtype) | {
        "vision_feature_select_strategy": strategy,
        "vision_feature_layer": feature_layer,
    }
    if not projector_bias:  # the released files leave the key out
        raw["multimodal_projector_bias"] = False
    directory = save(directory, raw, shapes(raw), seed, dtype, max_shard_size, CHAT_TEMPLATE)
    write_processor(directory, "LlavaProcessor", "CLIPImageProcessor", strategy)
    return directory


def save(directory, raw, tensor_shapes, seed, dtype, max_shard_size, template) -> pathlib.Path:
    """What the two families have in common: weights, configs, chat template, tokenizer."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    tensors = {name: _value(rng, name, s).astype(kind) for name, s in tensor_shapes.items()}
    _save_weights(directory, tensors, max_shard_size)
    _write(directory / "config.json", raw)
    ids = {"bos_token_id": IDS["<s>"], "eos_token_id": IDS["</s>"], "pad_token_id": IDS["<pad>"]}
    _write(directory / "generation_config.json", ids)
    _write(directory / "chat_template.json", {"chat_template": template})
    _save_tokenizer(directory)
    return directory


def write_processor(directory, name: str, image_processor: str, strategy: str, **more) -> None:
    """preprocessor_config.json (with the keys `more`) and processor_config.json."""
    preprocessing = {
        "crop_size": {"height": IMAGE, "width": IMAGE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": image_processor,
        "image_std": STD,
        "processor_class": name,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": IMAGE},
    }
    _write(directory / "preprocessor_config.json", preprocessing | more)
    processing = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "processor_class": name,
        "vision_feature_select_strategy": strategy,
    }
    _write(directory / "processor_config.json", processing)


def config(*, tied: bool, dtype: str) -> dict:
    """config.json in the form of llava-1.5-13b-hf (the 7b leaves the decoder's sizes out too)."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": IDS["<image>"],
        "model_type": "llava",
        "pad_token_id": IDS["<pad>"],
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-13b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": HEADS,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": VOCAB,
        },
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "transformers_version": "4.36.0.dev0",
        "vision_config": vision_config(),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": VOCAB,
    }


def vision_config() -> dict:
    """vision_config with the keys of all released files; hidden_act and layer_norm_eps are not."""
    return {
        "hidden_size": V_HIDDEN,
        "image_size": IMAGE,
        "intermediate_size": V_FFN,
        "model_type": "clip_vision_model",
        "num_attention_heads": V_HEADS,
        "num_hidden_layers": V_DEPTH,
        "patch_size": PATCH,
        "projection_dim": 24,
        "vocab_size": 32000,
    }


def shapes(raw: dict) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, as in a released checkpoint with the config `raw`."""
    text, prefix = raw["text_config"], "language_model.model."
    d = HIDDEN // HEADS
    kv = text.get("num_key_value_heads", HEADS) * d
    out: dict[str, tuple[int, ...]] = {prefix + "embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        layer = f"{prefix}layers.{i}."
        for name, rows, cols in (
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", FFN, HIDDEN),
            ("mlp.up_proj", FFN, HIDDEN),
            ("mlp.down_proj", HIDDEN, FFN),
        ):
            out[f"{layer}{name}.weight"] = (rows, cols)
        out[layer + "input_layernorm.weight"] = (HIDDEN,)
        out[layer + "post_attention_layernorm.weight"] = (HIDDEN,)
    out[prefix + "norm.weight"] = (HIDDEN,)
    if not raw["tie_word_embeddings"]:
        out["language_model.lm_head.weight"] = (VOCAB, HIDDEN)
    out |= _vision_shapes("vision_tower.vision_model.")
    for name, cols in (("linear_1", V_HIDDEN), ("linear_2", HIDDEN)):
        out[f"multi_modal_projector.{name}.weight"] = (HIDDEN, cols)
        if raw.get("multimodal_projector_bias", True):
            out[f"multi_modal_projector.{name}.bias"] = (HIDDEN,)
    return out


def _vision_shapes(tower: str) -> dict[str, tuple[int, ...]]:
    """The whole CLIP tower, unused parts and all."""
    out: dict[str, tuple[int, ...]] = {
        tower + "embeddings.class_embedding": (V_HIDDEN,),
        tower + "embeddings.patch_embedding.weight": (V_HIDDEN, 3, PATCH, PATCH),
        tower + "embeddings.position_embedding.weight": (V_TOKENS + 1, V_HIDDEN),
    }
    norms = [tower + "pre_layrnorm", tower + "post_layernorm"]
    for i in range(V_DEPTH):
        block = f"{tower}encoder.layers.{i}."
        norms += [block + "layer_norm1", block + "layer_norm2"]
        linear = {f"self_attn.{n}_proj": (V_HIDDEN, V_HIDDEN) for n in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (V_FFN, V_HIDDEN), "mlp.fc2": (V_HIDDEN, V_FFN)}
        for name, shape in linear.items():
            out[f"{block}{name}.weight"] = shape
            out[f"{block}{name}.bias"] = shape[:1]
    for norm in norms:
        out[norm + ".weight"] = out[norm + ".bias"] = (V_HIDDEN,)
    return out


def _value(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("image_newline"):  # of one axis, but not around 1
        return rng.standard_normal(shape).astype(np.float32)
    if "vision_model.embeddings." in name:
        # Small before the first norm, as in CLIP: only then does its eps show in the logits.
        noise = 0.05 * rng.standard_normal(shape).astype(np.float32)
        return noise * float(np.prod(shape[1:])) ** -0.5
    return _random(rng, name, shape)


def _without_vision_model(name: str) -> str:
    """A model built from its config and saved by transformers 5."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def _in_memory(name: str) -> str:
    """The names of the modules since transformers 4.52, which fine-tuning tools write."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


LAYOUTS: dict[str, Callable[[str], str]] = {
    "hub": lambda name: name,
    "without_vision_model": _without_vision_model,
    "transformers_4_52": _in_memory,
    "transformers_5": lambda name: _without_vision_model(_in_memory(name)),
}


@functools.cache
def _tokenizer() -> Tokenizer:
    """Of the form that Llama-2's tokenizer.json has, trained on CORPUS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    # Trained word by word, as the released one was; it is then used without splitting into words.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS.splitlines(),
        trainers.BpeTrainer(
            vocab_size=BASE_TOKENS,
            special_tokens=fixed,
            show_progress=False,
            initial_alphabet=sorted("▁ABEINRSTU:/<>?"),
        ),
    )
    assert tokenizer.get_vocab_size() == BASE_TOKENS
    # Only the first three are control tokens: a new tokenizer forgets that the bytes were named.
    blank = Tokenizer(tokenizer.model)
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    blank.normalizer = normalizers.Sequence(space)
    blank.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", IDS["<s>"])]
    )
    text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    blank.decoder = decoders.Sequence([*text, decoders.Strip(content=" ", left=1)])
    blank.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in IDS])
    assert all(blank.token_to_id(name) == i for name, i in IDS.items())
    return blank


def _save_tokenizer(directory: pathlib.Path) -> None:
    _tokenizer().save(str(directory / "tokenizer.json"))
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(i): {"content": name, **token, "special": True} for name, i in IDS.items()
        },
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "trust_remote_code": False,
        "use_default_system_prompt": False,
    }
    _write(directory / "tokenizer_config.json", settings | names)
    _write(directory / "special_tokens_map.json", names)


def oracle_inputs(folder, tokens, pictures: list[Image.Image]) -> dict:
    """The inputs of transformers' model for one row: token ids (expanded) and PIL pictures."""
    import torch
    from transformers import CLIPImageProcessorPil

    ids = torch.tensor([[int(i) for i in tokens]])
    inputs = {"input_ids": ids}
    if pictures:
        processor = CLIPImageProcessorPil.from_pretrained(folder)
        shown = processor([p.convert("RGB") for p in pictures], return_tensors="np")
        inputs["pixel_values"] = torch.tensor(shown["pixel_values"])
    return inputs
