"""Tensor names of LLaVA-1.5 and LLaVA-NeXT."""

from __future__ import annotations

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import (
    TensorSpec,
    decoder,
    dense,
    linear,
    norm,
    plain,
    unused,
)
from srpo_jax.models.families.llava.model import VisionConfig

TOWER, PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."
HEAD = "language_model.lm_head.weight"
# The canonical names are the Hub's. transformers from 4.52 on has put "model." before all but the
# head, 5 leaves "vision_model." out, and models saved without their head have no inner "model.".
SPELLINGS = (
    (r"^(model\.)?vision_tower\.(vision_model\.)?", TOWER),
    (r"^(language_model\.)?lm_head\.", "language_model.lm_head."),
    (r"^(model\.)?language_model\.(model\.)?", "language_model.model."),
    (r"^model\.(multi_modal_projector\.|image_newline$)", r"\1"),
)
# (start of such a name, what it is in transformers' model); the first counts.
IN_MEMORY = (
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
)


def table(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the checkpoint."""
    entries = decoder(config.text, "language_model.model.", HEAD) + _tower(config.vision)
    entries += _projector(config.vision, config.text.hidden_size)
    if config.vision.newline:
        shape = (config.text.hidden_size,)
        entries.append(plain("vision/image_newline/embedding", "image_newline", shape))
    return entries


def _tower(v: VisionConfig) -> list[TensorSpec]:
    width, patch = v.hidden_size, (v.in_channels, v.patch_size, v.patch_size)
    embeddings = TOWER + "embeddings."
    entries = [
        plain("vision/class_token/embedding", embeddings + "class_embedding", (width,)),
        # A convolution whose stride is its kernel: a matrix product over flattened (C, p, p).
        TensorSpec(
            "vision/patch_embed/kernel",
            embeddings + "patch_embedding.weight",
            (width, *patch),
            (1, 2, 3, 0),
            (v.patch_dim, width),
        ),
        plain(
            "vision/position/embedding",
            embeddings + "position_embedding.weight",
            (v.patch_unit + 1, width),
        ),
        *norm("vision/pre_norm", TOWER + "pre_layrnorm", width),
        *_blocks(v, TOWER + "encoder.layers.{i}.", v.depth),
    ]
    # The features are taken before the last blocks and the last norm: these are there, unused.
    for i in range(v.depth, v.blocks):
        entries += [_unused(entry) for entry in _blocks(v, f"{TOWER}encoder.layers.{i}.", None)]
    return entries + [_unused(entry) for entry in norm("", TOWER + "post_layernorm", width)]


def _blocks(v: VisionConfig, name: str, layers: int | None) -> list[TensorSpec]:
    """`layers` blocks, or one if that is None."""
    width, ffn, heads = v.hidden_size, v.intermediate_size, (v.num_heads, v.head_dim)
    attn, mlp = "vision/blocks/attn/", "vision/blocks/mlp/"
    entries = []
    for i in "12":
        entries += norm(f"vision/blocks/norm{i}", f"{name}layer_norm{i}", width, layers)
    for x in "qkv":
        entries += dense(
            attn + x, f"{name}self_attn.{x}_proj", width, width, layers, split_out=heads
        )
    entries += dense(
        attn + "proj", name + "self_attn.out_proj", width, width, layers, split_in=heads
    )
    entries += dense(mlp + "fc1", name + "mlp.fc1", width, ffn, layers)
    return entries + dense(mlp + "fc2", name + "mlp.fc2", ffn, width, layers)


def _projector(v: VisionConfig, out: int) -> list[TensorSpec]:
    entries = []
    for i, into in (("1", v.hidden_size), ("2", out)):
        param, name = f"vision/projector/fc{i}", f"{PROJECTOR}linear_{i}"
        if v.projector_bias:
            entries += dense(param, name, into, out)
        else:
            entries.append(linear(f"{param}/kernel", f"{name}.weight", out, into, (into, out)))
    return entries


def _unused(entry: TensorSpec) -> TensorSpec:
    return unused(entry.name, entry.disk)
