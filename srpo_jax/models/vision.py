"""The Qwen2.5-VL vision tower: patches in window order in, one vector per merged patch out.

Most blocks attend inside windows, a few inside whole frames; attention never crosses images. Which
patches see each other arrives as segment ids, so that every row has the same static shapes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.attention import segment_attention
from srpo_jax.models.config import VisionConfig
from srpo_jax.models.decoder import Constrain, Linear, RMSNorm, Rope, SwiGLU, rotate

EPS = 1e-6  # fixed in the family's code, not in its config files
THETA = 10000.0


def vision_rope(patch_pos: jax.Array, config: VisionConfig) -> Rope:
    """(cos, sin) float32 [B, P, d/2] for patch_pos int32 [B, P, 2].

    d/4 frequencies theta^(-4c/d) turn with the patch row, the same ones with the column.
    """
    exponent = np.arange(0, config.head_dim // 2, 2, dtype=np.float32) / (config.head_dim // 2)
    frequency = jnp.asarray(1.0 / THETA**exponent, jnp.float32)
    angle = patch_pos.astype(jnp.float32)[..., None] * frequency
    angle = angle.reshape(*patch_pos.shape[:2], -1)
    return jnp.cos(angle), jnp.sin(angle)


class VisionAttention(nn.Module):
    """Full attention inside segments, with one fused projection."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rope: Rope, seg: jax.Array) -> jax.Array:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        heads = (c.num_heads, c.head_dim)
        shape, bias = (c.hidden_size, 3, *heads), (3, *heads)
        qkv = Linear("bpE,Eshd->bpshd", shape, bias, *kinds, name="qkv")
        q, k, v = jnp.moveaxis(qkv(x), 2, 0)
        # Rotated in float32 and cast back, unlike the decoder (transformers' order in both).
        q, k = (rotate(y.astype(jnp.float32), rope).astype(self.dtype) for y in (q, k))
        shape, bias = (*heads, c.hidden_size), (c.hidden_size,)
        proj = Linear("bphd,hdE->bpE", shape, bias, *kinds, name="proj")
        return proj(segment_attention(q, k, v, seg))


class VisionBlock(nn.Module):
    """Pre-norm attention and SwiGLU. `full` (scanned) picks frames or windows as segments."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    constrain: Constrain

    @nn.compact
    def __call__(self, x, full: jax.Array, rope: Rope, window_seg: jax.Array, full_seg: jax.Array):
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        seg = jnp.where(full, full_seg, window_seg)
        y = RMSNorm(c.hidden_size, EPS, self.param_dtype, name="norm1")(x)
        x = self.constrain(x + VisionAttention(c, *kinds, name="attn")(y, rope, seg), "vision")
        y = RMSNorm(c.hidden_size, EPS, self.param_dtype, name="norm2")(x)
        mlp = SwiGLU(c.hidden_size, c.intermediate_size, True, *kinds, self.constrain, name="mlp")
        return self.constrain(x + mlp(y), "vision"), None


class Merger(nn.Module):
    """merge^2 neighbouring patches -> one decoder token: norm, concatenate, two layers, gelu."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        wide = c.hidden_size * c.merge_unit
        x = RMSNorm(c.hidden_size, EPS, self.param_dtype, name="norm")(x)
        x = x.reshape(x.shape[0], x.shape[1] // c.merge_unit, wide)
        x = Linear("bpe,ef->bpf", (wide, wide), (wide,), *kinds, name="fc1")(x)
        x = nn.gelu(x, approximate=False)  # the erf form; jax's default is the tanh one
        out = c.out_hidden_size
        return Linear("bpe,ef->bpf", (wide, out), (out,), *kinds, name="fc2")(x)


class VisionTower(nn.Module):
    """patches [B, P, patch_dim] (window order) -> [B, P / merge^2, D] (window order)."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    remat: bool
    constrain: Constrain

    @nn.compact
    def __call__(
        self, patches: jax.Array, patch_pos: jax.Array, window_seg: jax.Array, full_seg: jax.Array
    ) -> jax.Array:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        shape = (c.patch_dim, c.hidden_size)
        embed = Linear("bpc,cE->bpE", shape, None, *kinds, name="patch_embed")
        x = self.constrain(embed(patches.astype(self.dtype)), "vision")
        block = nn.remat(VisionBlock, prevent_cse=False) if self.remat else VisionBlock
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.depth,
        )(c, *kinds, self.constrain, name="blocks")
        full = jnp.asarray(np.isin(np.arange(c.depth), c.fullatt_block_indexes))
        x, _ = blocks(x, full, vision_rope(patch_pos, c), window_seg, full_seg)
        return Merger(c, *kinds, name="merger")(x)
