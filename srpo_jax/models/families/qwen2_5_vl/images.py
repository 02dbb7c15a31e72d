"""Pictures of the Qwen families: any resolution, one placeholder per merged patch."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.config_reader import shown
from srpo_jax.models.blocks.image_settings import load_image_processor

Grid = tuple[int, int, int]


class Images:
    """See blocks/image_layout.Images. Raises UserError if the processor cannot be loaded or
    contradicts config.json."""

    call: dict[str, Any] = {}

    def __init__(self, folder, config: ModelConfig, tokenizer):
        from transformers import Qwen2VLImageProcessorPil

        self.config = config
        self.process = load_image_processor(folder, Qwen2VLImageProcessorPil)
        vision = config.vision
        for ours, theirs in (
            (vision.patch_size, "patch_size"),
            (vision.temporal_patch_size, "temporal_patch_size"),
            (vision.spatial_merge_size, "merge_size"),
        ):
            if getattr(self.process, theirs) != ours:
                raise UserError(
                    f"{folder}: preprocessor_config.json has {theirs} "
                    f"{shown(getattr(self.process, theirs))}, config.json {ours}"
                )
        self.placeholder: str = tokenizer.convert_ids_to_tokens(config.image_token_id)
        pads = {
            i for i, t in tokenizer.added_tokens_decoder.items() if t.content == "<|vision_pad|>"
        }
        self.suppress: frozenset[Any] = frozenset(pads | {config.video_token_id})

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """An RGB picture -> patches float32 [h*w, patch_dim] in the processor's order, (1, h, w).

        Raises UserError if the picture has a shape that the processor refuses (1:200 and beyond).
        """
        self.grid(*picture.size)  # refuses what the processor would
        out = self.process(picture, return_tensors="np")
        _, h, w = (int(n) for n in out["image_grid_thw"][0])
        return np.ascontiguousarray(out["pixel_values"], np.float32), (1, h, w)

    def grid(self, width: int, height: int) -> Grid:
        """The grid of a picture of this size, by transformers' own rule; errors as above."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        size, patch = self.process.size, self.process.patch_size
        try:
            rows, columns = smart_resize(
                height,
                width,
                patch * self.process.merge_size,
                min_pixels=size.shortest_edge,
                max_pixels=size.longest_edge,
            )
        except ValueError as error:
            raise UserError(f"picture of {width}x{height} pixels: {one_line(error)}") from error
        return (1, rows // patch, columns // patch)

    def limit(self, max_pixels: int) -> dict[str, Any]:
        """See blocks/image_layout.Images."""
        least, most = self.process.size.shortest_edge, self.process.size.longest_edge
        least_tile = (self.process.patch_size * self.process.merge_size) ** 2
        if max_pixels < max(least, least_tile):
            raise UserError(
                f"data.max_pixels={max_pixels}: this model enlarges small pictures to "
                f"{max(least, least_tile)} pixels (min_pixels); set it at least as high"
            )
        size = {"shortest_edge": least, "longest_edge": min(most, max_pixels)}
        self.process.size = type(self.process.size)(**size)
        return {"size": size, "min_pixels": least, "max_pixels": size["longest_edge"]}

    def expansion(self, grid: Grid) -> str:
        """The text that replaces a picture's placeholder before it is tokenised."""
        frames, rows, cols = grid
        return self.placeholder * (frames * rows * cols // self.config.vision.patch_unit)
