"""The vision tower of Qwen3-VL: full attention, resampled learned positions, DeepStack.

DeepStack: the outputs of a few blocks, each through a merger of its own, are added to the picture
tokens after the first decoder layers; the last block's output becomes their embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.decoder import (
    STACKED,
    Constrain,
    LayerNorm,
    Linear,
    Rope,
    layer_input,
    with_remat,
)
from srpo_jax.models.blocks.image_layout import PatchField
from srpo_jax.models.blocks.qwen_vit import (
    EPS,
    Merger,
    QwenVisionConfig,
    VisionAttention,
    vision_rope,
)


@dataclasses.dataclass(frozen=True)
class VisionConfig(QwenVisionConfig):
    """The vision tower. table_side: rows and columns of the position table. deepstack: numbers of
    the blocks whose outputs go to the decoder, ascending.
    """

    table_side: int
    deepstack: tuple[int, ...]

    # table_index, table_weight: the entries of the position table around the patch, and how much
    # of each it takes.
    fields = (
        PatchField("patch_pos", (2,)),
        PatchField("table_index", (4,)),
        PatchField("table_weight", (4,), np.float32),
        PatchField("image_seg"),
    )
    segment_field = "image_seg"

    @property
    def entries(self) -> int:
        """Rows of the position table as a parameter."""
        return self.table_side**2


class Position(nn.Module):
    """The learned position of every patch: [B, P, E]."""

    entries: int
    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, index: jax.Array, weight: jax.Array) -> jax.Array:
        shape = (self.entries, self.width)
        table = self.param("embedding", nn.initializers.normal(0.02), shape, self.param_dtype)

        # One corner at a time: all four at once would be four times the memory of the patches.
        def corner(k: int) -> jax.Array:
            entry = jnp.take(table, index[..., k], axis=0, mode="clip").astype(jnp.float32)
            return entry * weight[..., k, None]

        summed: Any = sum(corner(k) for k in range(4))
        return summed.astype(self.dtype)


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    constrain: Constrain
    attend: Attend

    @nn.compact
    def __call__(self, carry, slot: jax.Array, rope: Rope, seg: jax.Array):
        """carry: x [B, P, E] and outs [N, B, P, E], into whose entry `slot` the result goes."""
        x, outs = layer_input(carry[0]), carry[1]
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        y = LayerNorm(c.hidden_size, EPS, self.param_dtype, name="norm1")(x)
        attention = VisionAttention(c, *kinds, self.attend, name="attn")
        x = self.constrain(x + attention(y, rope, seg), "vision")
        y = LayerNorm(c.hidden_size, EPS, self.param_dtype, name="norm2")(x)
        mlp = MLP(c.hidden_size, c.intermediate_size, *kinds, self.constrain, name="mlp")
        x = self.constrain(x + mlp(y), "vision")
        return (x, jax.lax.dynamic_update_index_in_dim(outs, x, slot, 0)), None


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), the tanh form of gelu."""

    width: int
    ffn: int
    dtype: Any
    param_dtype: Any
    constrain: Constrain

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kinds = (self.dtype, self.param_dtype)
        with jax.named_scope("mlp"):
            fc1 = Linear("bpE,EF->bpF", (self.width, self.ffn), (self.ffn,), *kinds, name="fc1")
            fc2 = Linear("bpF,FE->bpE", (self.ffn, self.width), (self.width,), *kinds, name="fc2")
            return fc2(self.constrain(nn.gelu(fc1(x), approximate=True), "ffn"))


class Tower(nn.Module):
    """inputs: patches [B, P, patch_dim] and `fields` ->
    (features [B, P / merge^2, out], those for the first K decoder layers [K, B, P / merge^2, out]).
    """

    config: VisionConfig
    out: int
    dtype: Any
    param_dtype: Any
    remat: str
    constrain: Constrain
    attend: Attend

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        shape = (c.patch_dim, c.hidden_size)
        embed = Linear("bpc,cE->bpE", shape, (c.hidden_size,), *kinds, name="patch_embed")
        place = Position(c.entries, c.hidden_size, *kinds, name="position")
        x = embed(inputs["patches"].astype(self.dtype))
        x = self.constrain(x + place(inputs["table_index"], inputs["table_weight"]), "vision")

        block = with_remat(VisionBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes=STACKED,
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType], flax knows int only
            length=c.depth,
        )(c, *kinds, self.constrain, self.attend, name="blocks")
        rope = vision_rope(inputs["patch_pos"], c.head_dim)
        # A block writes its output over the one before it, up to and with a chosen block: what
        # stays are the outputs of the chosen blocks and of the last one.
        slot = jnp.asarray(np.searchsorted(c.deepstack, np.arange(c.depth)), jnp.int32)
        outs = jnp.zeros((len(c.deepstack) + 1, *x.shape), x.dtype)
        (x, outs), _ = blocks((x, outs), slot, rope, inputs["image_seg"])

        mergers = nn.vmap(Merger, variable_axes=STACKED, split_rngs={"params": True})
        around = (*kinds, self.constrain)
        deep = mergers(c, self.out, LayerNorm, False, *around, name="deepstack")(outs[:-1])
        return Merger(c, self.out, LayerNorm, True, *around, name="merger")(x), deep
