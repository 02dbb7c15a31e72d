"""Tensor names of Qwen2.5-VL."""

from __future__ import annotations

import math

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import TensorSpec, decoder, dense, vector

HEAD = "lm_head.weight"
# The canonical names are the Hub's; transformers from 4.52 on has written the others in between.
SPELLINGS = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))
# (start of such a name, what it is in transformers' model); the first counts.
IN_MEMORY = (("visual.", "model.visual."), ("model.", "model.language_model."))


def table(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the checkpoint."""
    return decoder(config.text, "model.", HEAD) + _vision(config)


def patch_kernel(config: ModelConfig, name: str) -> TensorSpec:
    """A convolution whose stride is its kernel: a matrix product over flattened (C, T, p, p)."""
    v = config.vision
    patch = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return TensorSpec(
        "vision/patch_embed/kernel",
        name,
        (v.hidden_size, *patch),
        (1, 2, 3, 4, 0),
        (math.prod(patch), v.hidden_size),
    )


def _vision(config: ModelConfig) -> list[TensorSpec]:
    v = config.vision
    depth, width, ffn = v.depth, v.hidden_size, v.intermediate_size
    heads = (v.num_heads, v.head_dim)
    merged = width * v.spatial_merge_size**2
    entries = [patch_kernel(config, "visual.patch_embed.proj.weight")]
    block, param = "visual.blocks.{i}.", "vision/blocks/"
    for name in ("norm1", "norm2"):
        entries.append(vector(f"{param}{name}/scale", f"{block}{name}.weight", (width,), depth))
    for path, name, into, out, split_in, split_out in (
        ("attn/qkv", "attn.qkv", width, 3 * width, None, (3, *heads)),
        ("attn/proj", "attn.proj", width, width, heads, None),
        ("mlp/gate", "mlp.gate_proj", width, ffn, None, None),
        ("mlp/up", "mlp.up_proj", width, ffn, None, None),
        ("mlp/down", "mlp.down_proj", ffn, width, None, None),
    ):
        entries += dense(param + path, block + name, into, out, depth, split_in, split_out)
    entries.append(vector("vision/merger/norm/scale", "visual.merger.ln_q.weight", (width,)))
    for path, name, out in (("fc1", "mlp.0", merged), ("fc2", "mlp.2", v.out_hidden_size)):
        entries += dense(f"vision/merger/{path}", f"visual.merger.{name}", merged, out)
    return entries
