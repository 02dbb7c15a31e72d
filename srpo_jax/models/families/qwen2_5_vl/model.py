"""Qwen2.5-VL: windowed vision tower of dynamic resolution, M-RoPE, a Qwen2 decoder.

Most vision blocks attend inside windows, a few inside whole frames; attention never crosses
images. Patches arrive in window order. A grid is (frames, patch rows, patch columns).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import Reader
from srpo_jax.models.blocks.decoder import (
    STACKED,
    Constrain,
    Linear,
    RMSNorm,
    Rope,
    SwiGLU,
    layer_input,
    no_constraint,
    with_remat,
)
from srpo_jax.models.blocks.image_layout import Grid, ImageLayout, PatchField
from srpo_jax.models.blocks.qwen_positions import merged_rows_and_columns, patch_positions
from srpo_jax.models.blocks.qwen_vit import (
    EPS,
    Merger,
    QwenVisionConfig,
    VisionAttention,
    check_vision_rope,
    vision_rope,
)
from srpo_jax.models.blocks.text_config import read_text


@dataclasses.dataclass(frozen=True)
class VisionConfig(QwenVisionConfig):
    """The vision tower. window_size: in pixels. fullatt_block_indexes: numbers of the blocks that
    attend inside whole frames; the others attend inside windows."""

    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int

    fields = (PatchField("patch_pos", (2,)), PatchField("window_seg"), PatchField("full_seg"))
    segment_field = "full_seg"

    def attention_flops(self, patches: float, patch_pairs: float) -> float:
        """Windows at the edge of a picture are counted as if they were whole."""
        return self.kernel_flops(patches, patch_pairs, block=1)

    def kernel_flops(self, patches: float, patch_pairs: float, block: int) -> float:
        """A window has at least a block of keys."""
        per_pair, full = 4 * self.num_heads * self.head_dim, len(self.fullatt_block_indexes)
        window = max(block, (self.window_size // self.patch_size) ** 2)
        windowed = (self.depth - full) * min(patches * window, patch_pairs)
        return per_pair * (full * patch_pairs + windowed)


def read_config(where: str, raw: dict[str, Any], family: Family) -> ModelConfig:
    """The model of a parsed config.json; `where` names it in errors (UserError).

    Accepts the flat form (transformers 4: text keys at the root) and the nested one (4.52 on).
    """
    root = Reader(where, raw)
    text = read_text(where, raw, "qwen2")
    if text.rope != "mrope":
        raise UserError(f"{where}: mrope_section is missing, or M-RoPE is interleaved")
    vision = _read_vision(f"{where} (vision_config)", root.section("vision_config"))
    if vision.out_hidden_size != text.hidden_size:
        raise UserError(
            f"{where}: vision out_hidden_size {vision.out_hidden_size} is not the text "
            f"hidden_size {text.hidden_size}"
        )
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    found = {name: root.token(name, text.vocab_size) for name in ids}
    return ModelConfig(raw["model_type"], text, vision, **found, family=family)


def _read_vision(where: str, raw: dict[str, Any]) -> VisionConfig:
    get = Reader(where, raw)
    get.only("hidden_act", "silu")
    check_vision_rope(get)
    vision = VisionConfig(
        depth=get.integer("depth"),
        hidden_size=get.integer("hidden_size"),
        num_heads=get.integer("num_heads"),
        intermediate_size=get.integer("intermediate_size"),
        patch_size=get.integer("patch_size"),
        temporal_patch_size=get.integer("temporal_patch_size"),
        spatial_merge_size=get.integer("spatial_merge_size"),
        window_size=get.integer("window_size"),
        fullatt_block_indexes=get.integers("fullatt_block_indexes"),
        # The released files say `in_chans`, transformers 5 writes `in_channels`.
        in_channels=get.integer("in_channels"),
        out_hidden_size=get.integer("out_hidden_size"),
    )
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise UserError(
            f"{where}: hidden_size {vision.hidden_size} over {vision.num_heads} heads must give "
            "a head size divisible by 4 (two rotary axes)"
        )
    if vision.window_size % (vision.patch_size * vision.spatial_merge_size):
        raise UserError(
            f"{where}: window_size {vision.window_size} must be a multiple of patch_size times "
            "spatial_merge_size"
        )
    return vision


def image_layout(grid: Grid, config: ModelConfig) -> ImageLayout:
    """The layout of one image. Raises UserError for a grid that the merge size does not divide.

    The processor's rows are ordered (frame, merged row, merged column, row in it, column in it).
    Window order is (frame, window row, window column, merged row, merged column, ...); windows at
    the right and bottom edge are smaller when the grid is not a multiple of the window.
    """
    vision = config.vision
    merge, unit = vision.spatial_merge_size, vision.patch_unit
    side = vision.window_size // vision.patch_size // merge  # of a window, in merged patches
    frame, row, col = merged_rows_and_columns(grid, merge)
    windows = [frame, row // side, col // side]
    order = np.lexsort((col, row, *windows[::-1]))  # the last key sorts first
    window_of = np.unique(np.stack(windows), axis=1, return_inverse=True)[1].reshape(-1)
    return ImageLayout(
        order=(order[:, None] * unit + np.arange(unit)).reshape(-1).astype(np.int32),
        fields={
            "patch_pos": patch_positions(row[order], col[order], merge),
            "window_seg": np.repeat(window_of[order], unit).astype(np.int32),
            "full_seg": np.repeat(frame[order], unit).astype(np.int32),
        },
        token_index=np.argsort(order).astype(np.int32),
        features=len(order),
    )


class VisionBlock(nn.Module):
    """Pre-norm attention and SwiGLU. `full` (scanned) picks frames or windows as segments."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    constrain: Constrain
    attend: Attend

    @nn.compact
    def __call__(self, x, full: jax.Array, rope: Rope, window_seg: jax.Array, full_seg: jax.Array):
        c = self.config
        kinds = (self.dtype, self.param_dtype)
        x = layer_input(x)
        seg = jnp.where(full, full_seg, window_seg)
        y = RMSNorm(c.hidden_size, EPS, self.param_dtype, name="norm1")(x)
        attention = VisionAttention(c, *kinds, self.attend, name="attn")
        x = self.constrain(x + attention(y, rope, seg), "vision")
        y = RMSNorm(c.hidden_size, EPS, self.param_dtype, name="norm2")(x)
        mlp = SwiGLU(c.hidden_size, c.intermediate_size, True, *kinds, self.constrain, name="mlp")
        return self.constrain(x + mlp(y), "vision"), None


class Tower(nn.Module):
    """inputs: patches [B, P, patch_dim] in window order, patch_pos, window_seg, full_seg ->
    (features [B, P / merge^2, out] in window order, None)."""

    config: VisionConfig
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
        shape = (c.patch_dim, c.hidden_size)
        embed = Linear("bpc,cE->bpE", shape, None, *kinds, name="patch_embed")
        x = self.constrain(embed(inputs["patches"].astype(self.dtype)), "vision")
        block = with_remat(VisionBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes=STACKED,
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType], flax knows int only
            length=c.depth,
        )(c, *kinds, self.constrain, self.attend, name="blocks")
        full = jnp.asarray(np.isin(np.arange(c.depth), c.fullatt_block_indexes))
        rope = vision_rope(inputs["patch_pos"], c.head_dim)
        x, _ = blocks(x, full, rope, inputs["window_seg"], inputs["full_seg"])
        merger = Merger(c, self.out, RMSNorm, True, *kinds, no_constraint, name="merger")
        return merger(x), None
