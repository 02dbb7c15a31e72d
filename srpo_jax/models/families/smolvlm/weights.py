"""Tensor names of SmolVLM, SmolVLM2 and Idefics3."""

from __future__ import annotations

import math

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import (
    TensorSpec,
    decoder,
    dense,
    linear,
    norm,
    plain,
    vector,
)

HEAD = "lm_head.weight"
# The Hub's names are also those in memory. Without "model." a model was saved without its head.
SPELLINGS = ((r"^(vision_model|connector|text_model)\.", r"model.\1."),)


def table(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the checkpoint."""
    return decoder(config.text, "model.text_model.", HEAD) + _vision(config)


def _vision(config: ModelConfig) -> list[TensorSpec]:
    v, out = config.vision, config.text.hidden_size
    depth, width, ffn = v.depth, v.hidden_size, v.intermediate_size
    heads, wide = (v.num_heads, v.head_dim), width * v.shuffle**2
    patch = (v.in_channels, v.patch_size, v.patch_size)
    source = "model.vision_model."
    entries = [
        # A convolution whose stride is its kernel: a matrix product over flattened (C, p, p).
        TensorSpec(
            "vision/patch_embed/kernel",
            f"{source}embeddings.patch_embedding.weight",
            (width, *patch),
            (1, 2, 3, 0),
            (math.prod(patch), width),
        ),
        vector("vision/patch_embed/bias", f"{source}embeddings.patch_embedding.bias", (width,)),
        plain(
            "vision/position/embedding",
            f"{source}embeddings.position_embedding.weight",
            (v.patch_unit, width),
        ),
        *norm("vision/post_norm", f"{source}post_layernorm", width),
        linear(
            "vision/projector/fc1/kernel",
            "model.connector.modality_projection.proj.weight",
            out,
            wide,
            (wide, out),
        ),
    ]
    block, param = source + "encoder.layers.{i}.", "vision/blocks/"
    for number in "12":
        entries += norm(f"{param}norm{number}", f"{block}layer_norm{number}", width, depth)
    for short in "qkv":
        name = f"{block}self_attn.{short}_proj"
        entries += dense(f"{param}attn/{short}", name, width, width, depth, split_out=heads)
    name = f"{block}self_attn.out_proj"
    entries += dense(f"{param}attn/proj", name, width, width, depth, split_in=heads)
    for name, into, to in (("fc1", width, ffn), ("fc2", ffn, width)):
        entries += dense(f"{param}mlp/{name}", f"{block}mlp.{name}", into, to, depth)
    return entries
