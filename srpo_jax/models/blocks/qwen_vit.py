"""What the vision towers of the Qwen families share: 2-D RoPE and attention inside segments.

Which patches see each other arrives as segment ids, so that every row has the same static shapes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.decoder import Linear, Rope, rotate

THETA = 10000.0


def vision_rope(patch_pos: jax.Array, head_dim: int) -> Rope:
    """(cos, sin) float32 [B, P, d/2] for patch_pos int32 [B, P, 2].

    d/4 frequencies theta^(-4c/d) turn with the patch row, the same ones with the column.
    """
    exponent = np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2)
    frequency = jnp.asarray(1.0 / THETA**exponent, jnp.float32)
    angle = patch_pos.astype(jnp.float32)[..., None] * frequency
    angle = angle.reshape(*patch_pos.shape[:2], -1)
    return jnp.cos(angle), jnp.sin(angle)


class VisionAttention(nn.Module):
    """Full attention inside segments, with one fused projection. config: hidden_size, num_heads,
    head_dim."""

    config: Any
    dtype: Any
    param_dtype: Any
    attend: Attend

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
        return proj(self.attend.segments(q, k, v, seg))
