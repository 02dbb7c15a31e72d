"""The plain vision transformer over square tiles of one size: CLIP, SigLIP and InternViT.

LLaVA, InternVL and SmolVLM cut pictures into tiles of fixed size. A tile is a sequence of its own,
so attention costs tiles x n^2 and not P^2, and tiles of padding are skipped by it. How many tiles a
row has room for is fixed, how many it holds is data. Flags say what differs between the towers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.decoder import (
    STACKED,
    Constrain,
    LayerNorm,
    Linear,
    layer_input,
    with_remat,
)
from srpo_jax.models.blocks.image_layout import Grid, ImageLayout, PatchField

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class TileConfig:
    """image_size, patch_size: sides in pixels. depth: blocks that are run. shuffle: side of the
    square of patches that becomes one feature. projector: "mlp" (two layers, gelu between, a layer
    norm before with projector_norm) or "linear" (one, without bias). newline: a learned row is
    appended to the features. The other flags say which parts the tower has.
    """

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    activation: str
    eps: float
    in_channels: int = 3
    class_token: bool = False
    keep_class_token: bool = False  # as a feature of its own, before those of the patches
    patch_bias: bool = True
    pre_norm: bool = False
    post_norm: bool = False
    layer_scale: bool = False
    shuffle: int = 1
    projector: str = "mlp"
    projector_bias: bool = True
    projector_norm: bool = False
    projector_activation: str = "gelu"
    newline: bool = False

    fields = (PatchField("tile_seg"),)
    segment_field = "tile_seg"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def side(self) -> int:
        """Patches along the side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels, rows, columns."""
        return self.in_channels * self.patch_size**2

    @property
    def patch_unit(self) -> int:
        """Patches of one tile."""
        return self.side**2

    @property
    def tile_features(self) -> int:
        """Features that the tower makes of one tile."""
        return (self.side // self.shuffle) ** 2 + self.keep_class_token

    @property
    def unit_features(self) -> int:
        """Features that the tower makes of patch_unit patches."""
        return self.tile_features

    @property
    def tile_length(self) -> int:
        """Positions of a tile, a sequence of its own."""
        return self.patch_unit + self.class_token

    def attention_flops(self, patches: float, patch_pairs: float) -> float:
        """Scores and mixing, forward, all blocks; see TowerConfig."""
        return 4 * self.num_heads * self.head_dim * self.depth * patch_pairs

    def kernel_flops(self, patches: float, patch_pairs: float, block: int) -> float:
        """By a kernel that takes `block` keys at a time: all pairs of a tile, in whole blocks."""
        pairs = patches / self.patch_unit * (-(-self.tile_length // block) * block) ** 2
        return 4 * self.num_heads * self.head_dim * self.depth * pairs


def tile_layout(tiles: int, token_index: np.ndarray, vision: TileConfig) -> ImageLayout:
    """The layout of a picture of so many tiles: patches stay in the processor's order, tile by
    tile, rows of patches inside a tile. token_index int [m]: the feature of each placeholder."""
    return ImageLayout(
        order=np.arange(tiles * vision.patch_unit, dtype=np.int32),
        fields={"tile_seg": np.repeat(np.arange(tiles, dtype=np.int32), vision.patch_unit)},
        token_index=token_index.astype(np.int32),
        features=int(tiles * vision.tile_features),
    )


def text_positions(
    tokens: np.ndarray, grids: Sequence[Grid], config: ModelConfig
) -> tuple[np.ndarray, int]:
    """Positions of families with 1-D RoPE: (int32 [3, n], all rows 0 .. n-1; n)."""
    del grids, config
    count = len(tokens)
    return np.tile(np.arange(count, dtype=np.int32), (3, 1)), count


class TileAttention(nn.Module):
    """Full attention over the positions of a tile. x [N, n, E]; shown bool [N]."""

    config: TileConfig
    dtype: Any
    param_dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: jax.Array, shown: jax.Array) -> jax.Array:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        heads = (c.num_heads, c.head_dim)
        q, k, v = (
            Linear("npE,Ehd->nphd", (c.hidden_size, *heads), heads, *kinds, name=name)(x)
            for name in "qkv"
        )
        out = self.attend.rows(q, k, v, shown)
        width = c.hidden_size
        return Linear("nphd,hdE->npE", (*heads, width), (width,), *kinds, name="proj")(out)


class Scale(nn.Module):
    """x times a learned vector (LayerScale)."""

    size: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (self.size,), self.param_dtype)
        return x * scale.astype(x.dtype)


class TileBlock(nn.Module):
    """Pre-norm attention and two-layer MLP over x [N, n, E], shaped for nn.scan."""

    config: TileConfig
    dtype: Any
    param_dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: jax.Array, shown: jax.Array) -> tuple[jax.Array, None]:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        width, ffn = c.hidden_size, c.intermediate_size
        x = layer_input(x)
        y = LayerNorm(width, c.eps, self.param_dtype, name="norm1")(x)
        y = TileAttention(c, *kinds, self.attend, name="attn")(y, shown)
        x = x + (Scale(width, self.param_dtype, name="scale1")(y) if c.layer_scale else y)
        y = LayerNorm(width, c.eps, self.param_dtype, name="norm2")(x)
        y = MLP(width, ffn, c.activation, *kinds, name="mlp")(y)
        x = x + (Scale(width, self.param_dtype, name="scale2")(y) if c.layer_scale else y)
        return x, None


class MLP(nn.Module):
    """fc2(activation(fc1(x))), with biases."""

    width: int
    ffn: int
    activation: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kinds = (self.dtype, self.param_dtype)
        width, ffn = self.width, self.ffn
        x = Linear("npE,EF->npF", (width, ffn), (ffn,), *kinds, name="fc1")(x)
        x = ACTIVATIONS[self.activation](x)
        return Linear("npF,FE->npE", (ffn, width), (width,), *kinds, name="fc2")(x)


class Table(nn.Module):
    """A learned array of vectors."""

    shape: tuple[int, ...]
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(0.02)
        return self.param("embedding", init, self.shape, self.param_dtype).astype(self.dtype)


class Projector(nn.Module):
    """Features of the tower [N, m, E * shuffle^2] -> [N, m, out]."""

    config: TileConfig
    out: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, out = self.config, self.out
        kinds = (self.dtype, self.param_dtype)
        bias = (out,) if c.projector_bias else None
        wide = x.shape[-1]
        if c.projector_norm:
            x = LayerNorm(wide, 1e-5, self.param_dtype, name="norm")(x)  # torch's default eps
        x = Linear("npe,ef->npf", (wide, out), bias, *kinds, name="fc1")(x)
        if c.projector == "linear":
            return x
        x = ACTIVATIONS[c.projector_activation](x)
        return Linear("npe,ef->npf", (out, out), bias, *kinds, name="fc2")(x)


class TileTower(nn.Module):
    """inputs: patches [B, P, patch_dim], tiles one after the other, raster order inside a tile;
    tile_seg int32 [B, P], below 0 in tiles of padding (whole ones; their features are finite) ->
    (features [B, F, out], None), F = tiles * tile_features, + 1 for the newline."""

    config: TileConfig
    out: int
    dtype: Any
    param_dtype: Any
    remat: str
    constrain: Constrain
    attend: Attend

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        rows, patches, size = inputs["patches"].shape
        tiles = patches // c.patch_unit
        width = c.hidden_size
        bias = (width,) if c.patch_bias else None
        embed = Linear("bpc,cE->bpE", (size, width), bias, *kinds, name="patch_embed")
        x = self.constrain(embed(inputs["patches"].astype(self.dtype)), "vision")
        # Rows stay on the leading axis of the merged one, so their sharding carries over.
        x = x.reshape(rows * tiles, c.patch_unit, width)
        shown = (inputs["tile_seg"][:, :: c.patch_unit] >= 0).reshape(rows * tiles)
        if c.class_token:
            token = Table((width,), *kinds, name="class_token")()
            x = jnp.concatenate([jnp.broadcast_to(token, (rows * tiles, 1, width)), x], axis=1)
        x = x + Table((x.shape[1], width), *kinds, name="position")()
        x = self.constrain(x, "vision")
        if c.pre_norm:
            x = LayerNorm(width, c.eps, self.param_dtype, name="pre_norm")(x)
        block = with_remat(TileBlock, self.remat)
        x, _ = nn.scan(
            block,
            variable_axes=STACKED,
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType], flax knows int only
            length=c.depth,
        )(c, *kinds, self.attend, name="blocks")(x, shown)
        if c.post_norm:
            x = LayerNorm(width, c.eps, self.param_dtype, name="post_norm")(x)
        if c.class_token and not c.keep_class_token:
            x = x[:, 1:]
        x = Projector(c, self.out, *kinds, name="projector")(self._shuffled(x))
        x = self.constrain(x.reshape(rows, -1, self.out), "vision")
        if c.newline:
            newline = Table((self.out,), *kinds, name="image_newline")()
            newline = jnp.broadcast_to(newline, (rows, 1, self.out))
            x = jnp.concatenate([x, newline], axis=1)
        return x, None

    def _shuffled(self, x: jax.Array) -> jax.Array:
        """[N, side^2, E] -> [N, (side/s)^2, s^2 E]: squares of s x s patches side by side, their
        patches in raster order."""
        c, s = self.config, self.config.shuffle
        if s == 1:
            return x
        n, side = x.shape[0], self.config.side // s
        x = x.reshape(n, side, s, side, s, c.hidden_size).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(n, side * side, s * s * c.hidden_size)
