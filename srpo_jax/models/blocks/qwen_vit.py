"""What the vision towers of the Qwen families share: sizes, 2-D RoPE, attention, the merger.

Which patches see each other arrives as segment ids, so that every row has the same static shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config_reader import Reader, shown
from srpo_jax.models.blocks.decoder import Constrain, Linear, Rope, rotate
from srpo_jax.models.blocks.text_config import rope_settings, rope_type

THETA = 10000.0
EPS = 1e-6  # fixed in the families' code, not in their config files


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """The sizes that every Qwen tower has. patch_size is in pixels; the rest are counts."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int

    unit_features = 1  # patch_unit patches become one token
    tile_length = 0  # a picture is not cut into tiles

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

    def attention_flops(self, patches: float, patch_pairs: float) -> float:
        """Scores and mixing, forward, all blocks; see TowerConfig."""
        return 4 * self.num_heads * self.head_dim * self.depth * patch_pairs

    def kernel_flops(self, patches: float, patch_pairs: float, block: int) -> float:
        """By a kernel that takes `block` keys at a time; what it adds at the edges is left out."""
        return self.attention_flops(patches, patch_pairs)


def check_vision_rope(get: Reader) -> None:
    """UserError if a vision_config asks for another rotary embedding than `vision_rope`."""
    rope = rope_settings(get)
    theta, kind = rope("rope_theta", default=THETA), rope_type(rope)
    if theta != THETA or kind not in ("default", "axial"):
        raise UserError(
            f"{get.where}: rope_theta {shown(theta)} of type {shown(kind)} is not supported; only "
            f"{THETA:g}, default"
        )


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


class Merger(nn.Module):
    """merge^2 neighbouring patches -> one decoder token: norm, two layers with gelu between.

    norm: RMSNorm or LayerNorm. norm_first: each patch is normed alone, before they are joined;
    otherwise the joined vector is (DeepStack's mergers).
    """

    config: QwenVisionConfig
    out: int
    norm: type[nn.Module]
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
        norm = self.norm(size, EPS, self.param_dtype, name="norm")
        x = norm(x).reshape(joined) if self.norm_first else norm(x.reshape(joined))
        x = self.constrain(x, "vision")
        x = Linear("bpe,ef->bpf", (wide, wide), (wide,), *kinds, name="fc1")(x)
        # The erf form, also where the blocks have the tanh one; jax's default is the tanh one.
        x = self.constrain(nn.gelu(x, approximate=False), "ffn")
        x = Linear("bpe,ef->bpf", (wide, self.out), (self.out,), *kinds, name="fc2")(x)
        return self.constrain(x, "vision")
