"""Pictures of InternVL: cut into tiles by their shape, a thumbnail last, one span of tokens."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.config_reader import shown
from srpo_jax.models.blocks.hf_folder import read_optional_json
from srpo_jax.models.blocks.image_layout import Grid
from srpo_jax.models.blocks.image_settings import load_image_processor
from srpo_jax.models.families.llava.images import flat_patches

# The tokens of the family, by the attribute that the tokenizer of a checkpoint may name them with.
# Some copies of InternVL3.5 have the tokens without the attributes.
SPANS = {"start_image_token": "<img>", "end_image_token": "</img>"}
VIDEO = ("video_token", "<video>")


class Images:
    """See blocks/image_layout.Images. Raises UserError if the processor cannot be loaded or
    contradicts config.json."""

    # The released files say crop_to_patches false; transformers' InternVLProcessor passes true at
    # every call, and that is how the models were trained.
    call = {"crop_to_patches": True}

    def __init__(self, folder, config: ModelConfig, tokenizer):
        from transformers import GotOcr2ImageProcessorPil

        self.config = config
        self.process = load_image_processor(folder, GotOcr2ImageProcessorPil)
        vision, size = config.vision, self.process.size
        if (size.height, size.width) != (vision.image_size, vision.image_size):
            raise UserError(
                f"{folder}: preprocessor_config.json makes tiles of {size.height} x {size.width} "
                f"pixels, config.json needs {vision.image_size} x {vision.image_size}"
            )
        settings = read_optional_json(pathlib.Path(folder) / "processor_config.json")
        length = settings.get("image_seq_length", vision.tile_features)
        if length != vision.tile_features:
            raise UserError(
                f"{folder}: processor_config.json has image_seq_length {shown(length)}, by "
                f"config.json a tile has {vision.tile_features} tokens"
            )
        known = tokenizer.added_tokens_encoder
        self._around = [getattr(tokenizer, *names) for names in SPANS.items()]
        for token in self._around:
            if token not in known:
                raise UserError(f"{folder}: the tokenizer has no control token {token}")
        self.placeholder: str = tokenizer.convert_ids_to_tokens(config.image_token_id)
        # InternVL3 gives <video> an id that has no row in the embedding.
        video = getattr(tokenizer, *VIDEO)
        self.suppress = frozenset({known[video]} if video in known else ())

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """An RGB picture -> patches float32 [tiles * side^2, patch_dim], tile by tile (tiles by
        rows, the thumbnail last), rows of patches inside a tile; and (tiles,).

        Raises UserError if the picture has a shape that the processor refuses.
        """
        try:
            out = self.process(picture, return_tensors="np", **self.call)
        except ValueError as error:
            size = f"{picture.width}x{picture.height}"
            raise UserError(f"picture of {size} pixels: {one_line(error)}") from error
        tiles = np.asarray(out["pixel_values"], np.float32)
        return flat_patches(tiles, self.config.vision.patch_size), (len(tiles),)

    def grid(self, width: int, height: int) -> Grid:
        """The grid of a picture of this size, by transformers' own rule."""
        count = self.process.get_number_of_image_patches
        return (count(height, width, self.call),)

    def limit(self, max_pixels: int) -> dict[str, Any]:
        """See blocks/image_layout.Images. The thumbnail besides the tiles is not counted."""
        tile = self.config.vision.image_size**2
        if max_pixels < tile * self.process.min_patches:
            raise UserError(
                f"data.max_pixels={max_pixels}: this model shows a picture in at least "
                f"{self.process.min_patches} tiles of {tile} pixels; set it at least as high"
            )
        self.process.max_patches = min(self.process.max_patches, max_pixels // tile)
        return {"max_patches": self.process.max_patches}

    def expansion(self, grid: Grid) -> str:
        """The text that replaces a picture's placeholder before it is tokenised."""
        start, end = self._around
        return start + self.placeholder * (grid[0] * self.config.vision.tile_features) + end
