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
from srpo_jax.models.blocks.config import PatchField
from srpo_jax.models.blocks.decoder import (
    STACKED,
    Constrain,
    LayerNorm,
    Linear,
    Rope,
    layer_input,
    with_remat,
)
from srpo_jax.models.blocks.qwen_vit import VisionAttention, vision_rope

EPS = 1e-6  # fixed in the family's code, not in its config files


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. patch_size is in pixels; the rest are counts.

    table_side: rows and columns of the position table. deepstack: numbers of the blocks whose
    outputs go to the decoder, ascending.
    """

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
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

    @property
    def entries(self) -> int:
        """Rows of the position table as a parameter."""
        return self.table_side**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels, frames, rows, columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def patch_unit(self) -> int:
        """Patches that become one token of the decoder."""
        return self.spatial_merge_size**2


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

        return sum(corner(k) for k in range(4)).astype(self.dtype)


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


class Merger(nn.Module):
    """merge^2 neighbouring patches -> one decoder token. norm_first: each patch is normed alone,
    before they are joined (the main merger); otherwise the joined vector is (DeepStack's)."""

    config: VisionConfig
    out: int
    norm_first: bool
    dtype: Any
    param_dtype: Any
    constrain: Constrain

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        wide = c.hidden_size * c.patch_unit
        joined = (x.shape[0], x.shape[1] // c.patch_unit, wide)
        size = c.hidden_size if self.norm_first else wide
        norm = LayerNorm(size, EPS, self.param_dtype, name="norm")
        x = norm(x).reshape(joined) if self.norm_first else norm(x.reshape(joined))
        x = self.constrain(x, "vision")
        x = Linear("bpe,ef->bpf", (wide, wide), (wide,), *kinds, name="fc1")(x)
        x = self.constrain(nn.gelu(x, approximate=False), "ffn")  # the erf form, unlike the blocks'
        x = Linear("bpe,ef->bpf", (wide, self.out), (self.out,), *kinds, name="fc2")(x)
        return self.constrain(x, "vision")


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
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.depth,
        )(c, *kinds, self.constrain, self.attend, name="blocks")
        rope = vision_rope(inputs["patch_pos"], c.head_dim)
        # A block writes its output over the one before it, up to and with a chosen block: what
        # stays are the outputs of the chosen blocks and of the last one.
        slot = jnp.asarray(np.searchsorted(c.deepstack, np.arange(c.depth)), jnp.int32)
        outs = jnp.zeros((len(c.deepstack) + 1, *x.shape), x.dtype)
        (x, outs), _ = blocks((x, outs), slot, rope, inputs["image_seg"])

        mergers = nn.vmap(Merger, variable_axes=STACKED, split_rngs={"params": True})
        deep = mergers(c, self.out, False, *kinds, self.constrain, name="deepstack")(outs[:-1])
        return Merger(c, self.out, True, *kinds, self.constrain, name="merger")(x), deep
