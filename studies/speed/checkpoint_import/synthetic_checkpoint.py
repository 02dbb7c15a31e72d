"""A synthetic Qwen2.5-VL checkpoint of any size: the 3B model's shapes with fewer layers.

Only config.json, the weight files and their index: what reading weights needs, and no tokenizer.
Written block by block, so that making it needs no memory to speak of.
"""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np

from srpo_jax.errors import UserError

BLOCK = 1 << 22  # numbers of the random block that fills every tensor, each from its own offset

# The released 3B sizes. Below 2 GB the widths shrink, so that layers still outweigh the embedding.
LARGE = {
    "hidden": 2048,
    "ffn": 11008,
    "heads": 16,
    "kv": 2,
    "vocab": 151936,
    "v_hidden": 1280,
    "v_ffn": 3420,
    "v_heads": 16,
}
SMALL = {
    "hidden": 512,
    "ffn": 2816,
    "heads": 8,
    "kv": 2,
    "vocab": 16384,
    "v_hidden": 320,
    "v_ffn": 864,
    "v_heads": 4,
}
MERGE, PATCH = 2, 14


def write_checkpoint(
    folder: pathlib.Path, gigabytes: float, *, shard_bytes: int = 10**9
) -> pathlib.Path:
    """Writes about `gigabytes` * 1e9 bytes of bfloat16 weights in files of `shard_bytes`.

    Raises UserError when the layers that fit are none, i.e. gigabytes is below about 0.05.
    """
    sizes = LARGE if gigabytes >= 2 else SMALL
    layers, depth = _layers(sizes, gigabytes * 1e9 / 2)
    shapes = tensor_shapes(sizes, layers, depth)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(sizes, layers, depth), indent=2))

    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        held = sum(2 * math.prod(s) for s in shards[-1].values())
        if shards[-1] and held + 2 * math.prod(shape) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    noise = _noise()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard, noise, seed=number)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def tensor_shapes(s: dict[str, int], layers: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, in the order of the files; tied, so there is no head."""
    width, ffn, head = s["hidden"], s["ffn"], s["hidden"] // s["heads"]
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s["vocab"], width)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, rows in (("q", width), ("k", s["kv"] * head), ("v", s["kv"] * head)):
            out[f"{block}self_attn.{name}_proj.weight"] = (rows, width)
            out[f"{block}self_attn.{name}_proj.bias"] = (rows,)
        out[f"{block}self_attn.o_proj.weight"] = (width, width)
        out[f"{block}mlp.gate_proj.weight"] = out[f"{block}mlp.up_proj.weight"] = (ffn, width)
        out[f"{block}mlp.down_proj.weight"] = (width, ffn)
        out[f"{block}input_layernorm.weight"] = (width,)
        out[f"{block}post_attention_layernorm.weight"] = (width,)
    out["model.norm.weight"] = (width,)
    v, v_ffn = s["v_hidden"], s["v_ffn"]
    out["visual.patch_embed.proj.weight"] = (v, 3, 2, PATCH, PATCH)
    for i in range(depth):
        block = f"visual.blocks.{i}."
        for name, rows, columns in (
            ("attn.qkv", 3 * v, v),
            ("attn.proj", v, v),
            ("mlp.gate_proj", v_ffn, v),
            ("mlp.up_proj", v_ffn, v),
            ("mlp.down_proj", v, v_ffn),
        ):
            out[f"{block}{name}.weight"] = (rows, columns)
            out[f"{block}{name}.bias"] = (rows,)
        out[f"{block}norm1.weight"] = out[f"{block}norm2.weight"] = (v,)
    merged = v * MERGE**2
    out["visual.merger.ln_q.weight"] = (v,)
    for name, rows in (("mlp.0", merged), ("mlp.2", width)):
        out[f"visual.merger.{name}.weight"] = (rows, merged)
        out[f"visual.merger.{name}.bias"] = (rows,)
    return out


def _layers(sizes: dict[str, int], numbers: float) -> tuple[int, int]:
    """(decoder layers, vision blocks) whose checkpoint has about so many numbers."""

    def count(layers: int, depth: int) -> int:
        return sum(math.prod(shape) for shape in tensor_shapes(sizes, layers, depth).values())

    empty = count(0, 0)
    layer, block = count(1, 0) - empty, count(0, 1) - empty
    # One vision block to every decoder layer, as in the 3B model (32 to 36).
    fitting = round((numbers - empty) / (layer + block))
    if fitting < 1:
        raise UserError(f"{numbers * 2 / 1e9:.3g} GB do not hold one layer of the synthetic model")
    return fitting, fitting


def _config(s: dict[str, int], layers: int, depth: int) -> dict:
    head = s["hidden"] // s["heads"]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
        "hidden_act": "silu",
        "hidden_size": s["hidden"],
        "intermediate_size": s["ffn"],
        "max_position_embeddings": 4096,
        "num_attention_heads": s["heads"],
        "num_hidden_layers": layers,
        "num_key_value_heads": s["kv"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [head // 8, *[3 * head // 16] * 2]},
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": s["vocab"],
        "vision_config": {
            "depth": depth,
            "hidden_act": "silu",
            "hidden_size": s["v_hidden"],
            "intermediate_size": s["v_ffn"],
            "num_heads": s["v_heads"],
            "in_chans": 3,
            "out_hidden_size": s["hidden"],
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [depth - 1],
            "tokens_per_second": 2,
        },
    }


def _noise() -> np.ndarray:
    """Random bfloat16 bit patterns of numbers between 2**-7 and 2 in size, as uint16."""
    bits = np.random.default_rng(0).integers(0, 1 << 16, BLOCK, dtype=np.uint16)
    return (bits & 0x83FF) | 0x3C00


def _write_file(file: pathlib.Path, shapes: dict, noise: np.ndarray, seed: int) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    offsets = np.random.default_rng(seed).integers(0, BLOCK // 2, len(shapes))
    with open(file, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for offset, shape in zip(offsets, shapes.values(), strict=True):
            left = math.prod(shape)
            while left:
                f.write(noise[offset : offset + left].data)
                left -= min(left, BLOCK - offset)
                offset = 0
