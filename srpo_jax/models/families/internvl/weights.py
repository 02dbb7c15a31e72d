"""Tensor names of InternVL3 and InternVL3.5 (`-hf`)."""

from __future__ import annotations

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import TensorSpec, decoder, dense, norm, vector
from srpo_jax.models.blocks.tiled_vit import TileConfig

HEAD = "language_model.lm_head.weight"
# The canonical names are the Hub's; the others are those that transformers uses in memory.
SPELLINGS = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
)
# (start of such a name, what it is in transformers' model); the first counts.
IN_MEMORY = (
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
)
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."


def table(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the checkpoint."""
    v, out = config.vision, config.text.hidden_size
    wide = v.hidden_size * v.shuffle**2
    return [
        *decoder(config.text, "language_model.model.", HEAD),
        *_embeddings(v),
        *_blocks(v),
        *norm("vision/projector/norm", PROJECTOR + "layer_norm", wide),
        *dense("vision/projector/fc1", PROJECTOR + "linear_1", wide, out),
        *dense("vision/projector/fc2", PROJECTOR + "linear_2", out, out),
    ]


def _embeddings(v: TileConfig) -> list[TensorSpec]:
    name, width = TOWER + "embeddings.", v.hidden_size
    patch, rows = (v.in_channels, v.patch_size, v.patch_size), v.patch_unit + 1
    return [
        # A convolution whose stride is its kernel: a matrix product over flattened (C, p, p).
        TensorSpec(
            "vision/patch_embed/kernel",
            name + "patch_embeddings.projection.weight",
            (width, *patch),
            (1, 2, 3, 0),
            (v.patch_dim, width),
        ),
        vector("vision/patch_embed/bias", name + "patch_embeddings.projection.bias", (width,)),
        TensorSpec(
            "vision/class_token/embedding",
            name + "cls_token",
            (1, 1, width),
            (0, 1, 2),
            (width,),
        ),
        TensorSpec(
            "vision/position/embedding",
            name + "position_embeddings",
            (1, rows, width),
            (0, 1, 2),
            (rows, width),
        ),
    ]


def _blocks(v: TileConfig) -> list[TensorSpec]:
    param, name, depth = "vision/blocks/", TOWER + "encoder.layer.{i}.", v.depth
    width, ffn, heads = v.hidden_size, v.intermediate_size, (v.num_heads, v.head_dim)
    attn = name + "attention."
    entries = [
        *norm(param + "norm1", name + "layernorm_before", width, depth),
        *norm(param + "norm2", name + "layernorm_after", width, depth),
        vector(param + "scale1/scale", name + "lambda_1", (width,), depth),
        vector(param + "scale2/scale", name + "lambda_2", (width,), depth),
        *dense(param + "attn/proj", attn + "projection_layer", width, width, depth, split_in=heads),
        *dense(param + "mlp/fc1", name + "mlp.fc1", width, ffn, depth),
        *dense(param + "mlp/fc2", name + "mlp.fc2", ffn, width, depth),
    ]
    for x in "qkv":
        entries += dense(
            f"{param}attn/{x}", f"{attn}{x}_proj", width, width, depth, split_out=heads
        )
    return entries
