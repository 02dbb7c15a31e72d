"""Pictures of SmolVLM, SmolVLM2 and Idefics3: a grid of tiles, each named in the text."""

from __future__ import annotations

import math
import pathlib
import re
import sys
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.config_reader import shown
from srpo_jax.models.blocks.hf_folder import read_optional_json
from srpo_jax.models.blocks.image_settings import load_image_processor

AROUND, IMAGE, WHOLE = "<fake_token_around_image>", "<image>", "<global-img>"
# Tokens that only stand around pictures. Older releases write places in ordinary tokens.
MARKS = re.compile(rf"{AROUND}|{IMAGE}|{WHOLE}|<row_\d+_col_\d+>|<video>")

Grid = tuple[int, int]


class Images:
    """See blocks/image_layout.Images. Raises UserError if the processor cannot be loaded or
    contradicts config.json."""

    call: dict[str, Any] = {}

    def __init__(self, folder, config: ModelConfig, tokenizer):
        from transformers import Idefics3ImageProcessorPil, SmolVLMImageProcessorPil

        kinds = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}
        self.config = config
        self.process = load_image_processor(folder, kinds[config.model_type])
        vision, tile = config.vision, self.process.max_image_size.get("longest_edge", 0)
        # Every tile comes out tile x tile pixels, whatever the picture and with splitting or
        # without; so each patch has its own position in the table if the tile is a full one.
        if tile // vision.patch_size != vision.side:
            raise UserError(
                f"{folder}: max_image_size {tile} of preprocessor_config.json does not make tiles "
                f"of {vision.side} x {vision.side} patches, as image_size {vision.image_size} of "
                "config.json says"
            )
        length = read_optional_json(pathlib.Path(folder) / "processor_config.json").get(
            "image_seq_len"
        )
        if length not in (None, vision.tile_features):
            raise UserError(
                f"{folder}: processor_config.json has image_seq_len {shown(length)}, but "
                f"config.json makes {vision.tile_features} features of a tile"
            )
        for token in (AROUND, IMAGE):
            if token not in tokenizer.added_tokens_encoder:
                raise UserError(f"{folder}: the tokenizer has no control token {token}")
        if tokenizer.added_tokens_encoder[IMAGE] != config.image_token_id:
            raise UserError(
                f"{folder}: image_token_id {config.image_token_id} of config.json is not "
                f"{IMAGE} in the tokenizer; the files belong to different models"
            )
        self.placeholder = IMAGE
        added = tokenizer.added_tokens_decoder.items()
        self.suppress = frozenset(i for i, t in added if MARKS.fullmatch(t.content))

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """An RGB picture -> patches float32 [p, patch_dim], (rows, columns) of its tiles or (0, 0).

        Tiles by rows, the whole picture last; patches in raster order inside a tile, each
        flattened (C, row, column). Pixels beyond the last whole patch of a tile are dropped, as
        the model's convolution drops them.
        """
        out = self.process(images=[[picture]], return_row_col_info=True, return_tensors="np")
        vision = self.config.vision
        side, size = vision.side, vision.patch_size
        pixels = np.asarray(out["pixel_values"], np.float32)[0, :, :, : side * size, : side * size]
        tiles, channels = pixels.shape[:2]
        patches = pixels.reshape(tiles, channels, side, size, side, size)
        patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(-1, vision.patch_dim)
        return np.ascontiguousarray(patches), (int(out["rows"][0][0]), int(out["cols"][0][0]))

    def grid(self, width: int, height: int) -> Grid:
        """The grid of a picture of this size: transformers' arithmetic (its own counting function,
        get_number_of_image_patches, rounds the short side in another way than its resizing does).
        """
        process, tile = self.process, self.process.max_image_size["longest_edge"]
        if not process.do_image_splitting:
            return (0, 0)
        if process.do_resize and process.size.longest_edge:
            rules = sys.modules[type(process).__module__]
            shape = np.broadcast_to(np.uint8(0), (1, height, width))  # only its shape is read
            height, width = rules.get_resize_output_image_size(shape, process.size.longest_edge)
        elif process.do_resize:
            height, width = process.size.height, process.size.width
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / tile)
            rows = math.ceil(int(columns * tile / ratio) / tile)
        else:
            rows = math.ceil(height / tile)
            columns = math.ceil(int(rows * tile * ratio) / tile)
        return (rows, columns) if max(rows, columns) > 1 else (0, 0)

    def limit(self, max_pixels: int) -> dict[str, Any]:
        """See blocks/image_layout.Images. The whole picture besides the tiles is not counted."""
        process, tile = self.process, self.process.max_image_size["longest_edge"]
        side = math.isqrt(max_pixels) // tile * tile
        if not side:
            raise UserError(
                f"data.max_pixels={max_pixels}: this model shows a picture in tiles of "
                f"{tile**2} pixels; set it at least as high"
            )
        if not process.size.longest_edge:
            raise UserError("data.max_pixels: this model shows every picture in one size; set 0")
        size = {"longest_edge": min(process.size.longest_edge, side)}
        process.size = type(process.size)(**size)
        return {"size": size}

    def expansion(self, grid: Grid) -> str:
        """The text that replaces a picture's placeholder before it is tokenised."""
        rows, cols = grid
        shown = IMAGE * self.config.vision.tile_features
        whole = f"{AROUND}{WHOLE}{shown}{AROUND}"
        if not rows:
            return whole
        lines = (
            "".join(f"{AROUND}<row_{r}_col_{c}>{shown}" for c in range(1, cols + 1)) + "\n"
            for r in range(1, rows + 1)
        )
        return "".join(lines) + "\n" + whole
