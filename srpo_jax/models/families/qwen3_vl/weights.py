"""Tensor names of Qwen3-VL (dense)."""

from __future__ import annotations

from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import TensorSpec, decoder, dense, norm, plain, vector
from srpo_jax.models.families.qwen2_5_vl.weights import patch_kernel

HEAD = "lm_head.weight"
# The Hub's names are also those in memory. Without "model." a model was saved without its head.
SPELLINGS = ((r"^(visual|language_model)\.", r"model.\1."),)


def table(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the checkpoint."""
    return decoder(config.text, "model.language_model.", HEAD) + _vision(config)


def _vision(config: ModelConfig) -> list[TensorSpec]:
    v = config.vision
    depth, width, ffn = v.depth, v.hidden_size, v.intermediate_size
    heads = (v.num_heads, v.head_dim)
    entries = [
        patch_kernel(config, "model.visual.patch_embed.proj.weight"),
        vector("vision/patch_embed/bias", "model.visual.patch_embed.proj.bias", (width,)),
        plain("vision/position/embedding", "model.visual.pos_embed.weight", (v.entries, width)),
    ]
    block, param = "model.visual.blocks.{i}.", "vision/blocks/"
    for name in ("norm1", "norm2"):
        entries += norm(param + name, block + name, width, depth)
    for path, name, into, out, split_in, split_out in (
        ("attn/qkv", "attn.qkv", width, 3 * width, None, (3, *heads)),
        ("attn/proj", "attn.proj", width, width, heads, None),
        ("mlp/fc1", "mlp.linear_fc1", width, ffn, None, None),
        ("mlp/fc2", "mlp.linear_fc2", ffn, width, None, None),
    ):
        entries += dense(param + path, block + name, into, out, depth, split_in, split_out)

    merged, out = width * v.patch_unit, config.text.hidden_size
    for param, name, normed, count in (
        ("vision/merger/", "model.visual.merger.", width, None),
        ("vision/deepstack/", "model.visual.deepstack_merger_list.{i}.", merged, len(v.deepstack)),
    ):
        entries += norm(param + "norm", name + "norm", normed, count)
        entries += dense(param + "fc1", name + "linear_fc1", merged, merged, count)
        entries += dense(param + "fc2", name + "linear_fc2", merged, out, count)
    return entries
