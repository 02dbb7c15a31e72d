"""Pictures of LLaVA-1.5 (one square tile) and LLaVA-NeXT (the whole picture, then tiles of it)."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.config_reader import is_integer, shown
from srpo_jax.models.blocks.hf_folder import read_optional_json
from srpo_jax.models.blocks.image_layout import Grid
from srpo_jax.models.blocks.image_settings import load_image_processor
from srpo_jax.models.families.llava.model import image_layout, read_pinpoints

# image_processor_type of the released files (and with "Fast" behind, or "Pil").
IMAGE_PROCESSORS = {
    "llava": ("CLIPImageProcessor", "LlavaImageProcessor"),
    "llava_next": ("LlavaNextImageProcessor",),
}
# LLaVA-1.5's processor enlarges the short side to that of a tile and crops the long one: a picture
# of 1 x 50000 pixels would become one of 5 gigapixels first. The limit is that of the Qwen family.
LONGEST = 200


class Images:
    """See blocks/image_layout.Images. Raises UserError if the processor cannot be loaded or
    contradicts config.json."""

    suppress: frozenset[int] = frozenset()
    call: dict[str, Any] = {}

    def __init__(self, folder: str | pathlib.Path, config: ModelConfig, tokenizer):
        self.config = config
        folder = pathlib.Path(folder)
        settings = read_optional_json(folder / "processor_config.json")
        self.process = _image_processor(folder, config, settings)
        if config.vision.pinpoints:
            where = f"{folder}: preprocessor_config.json"
            theirs = self.process.image_grid_pinpoints
            if read_pinpoints(where, theirs, config.vision) != config.vision.pinpoints:
                raise UserError(f"{where} has other image_grid_pinpoints than config.json")
        _check_tile_tokens(folder, config, settings)
        self.placeholder: str = getattr(
            tokenizer, "image_token", settings.get("image_token", "<image>")
        )
        if tokenizer.convert_tokens_to_ids(self.placeholder) != config.image_token_id:
            raise UserError(
                f"{folder}: image_token_index {config.image_token_id} of config.json is not the "
                f"tokenizer's {self.placeholder!r}; the files belong to different models"
            )
        side = config.vision.image_size
        self(Image.new("RGB", (side, side)))  # a processor of another size is told at once

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """An RGB picture -> patches float32 [tiles * side^2, patch_dim], tile by tile, rows of
        patches inside a tile; and (1,) for LLaVA-1.5, (height, width) for LLaVA-NeXT.

        Raises UserError if the picture has a shape that the processor refuses (LLaVA-1.5: 1:200
        and beyond).
        """
        vision, size = self.config.vision, f"{picture.width}x{picture.height}"
        grid = self.grid(*picture.size)
        try:
            out = self.process(picture, return_tensors="np")
        except ValueError as error:
            raise UserError(f"picture of {size} pixels: {one_line(error)}") from error
        pixels = np.asarray(out["pixel_values"], np.float32)
        tile = (vision.in_channels, vision.image_size, vision.image_size)
        if pixels.shape[-3:] != tile:
            raise UserError(
                f"preprocessor_config.json makes tiles of shape {pixels.shape[-3:]}, the model of "
                f"config.json takes {tile}; the files belong to different models"
            )
        return flat_patches(pixels.reshape(-1, *tile), vision.patch_size), grid

    def grid(self, width: int, height: int) -> Grid:
        """The grid of a picture of this size; errors as above."""
        if self.config.vision.pinpoints:
            return (height, width)
        if max(width, height) >= LONGEST * min(width, height):
            raise UserError(f"picture of {width}x{height} pixels: longer than 1:{LONGEST}")
        return (1,)

    def limit(self, max_pixels: int) -> dict[str, Any]:
        """See blocks/image_layout.Images."""
        raise UserError(
            f"data.max_pixels={max_pixels}: config.json says in which sizes this model shows "
            "pictures; set it to 0"
        )

    def expansion(self, grid: Grid) -> str:
        """The text that replaces a picture's placeholder before it is tokenised."""
        return self.placeholder * len(image_layout(grid, self.config).token_index)


def flat_patches(tiles: np.ndarray, patch: int) -> np.ndarray:
    """[n, C, S, S] -> [n * (S/patch)^2, C * patch^2]: raster order inside a tile, each patch
    flattened as (C, row, column)."""
    count, channels, size, _ = tiles.shape
    side = size // patch
    rows = tiles.reshape(count, channels, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(rows).reshape(count * side * side, -1)


def _image_processor(folder: pathlib.Path, config: ModelConfig, settings: dict):
    """transformers' image processor of the folder, in its form without torch."""
    import transformers

    # transformers 5 saves it inside processor_config.json, and reads it from there first.
    saved = settings.get("image_processor") or read_optional_json(
        folder / "preprocessor_config.json"
    )
    kind = str(saved.get("image_processor_type")).removesuffix("Fast").removesuffix("Pil")
    known = IMAGE_PROCESSORS[config.model_type]
    if saved and kind not in known:
        raise UserError(
            f"{folder}: image_processor_type {shown(saved.get('image_processor_type'))} is not "
            f"supported for a {config.model_type} model; only {', '.join(known)}"
        )
    name = (kind if saved else known[0]) + "Pil"  # without a file the next line tells of it
    return load_image_processor(folder, getattr(transformers, name))


def _check_tile_tokens(folder: pathlib.Path, config: ModelConfig, settings: dict) -> None:
    """transformers' processor must count as many placeholders for a tile as it has features.

    It adds num_additional_image_tokens (the class token) to the patches, and takes one away again
    for "default". Files from before 2024-10 have no such keys; that gives the same number.
    """
    vision = config.vision
    patch = settings.get("patch_size") or vision.patch_size
    strategy = settings.get("vision_feature_select_strategy")
    extra = settings.get("num_additional_image_tokens", 0)
    tokens: object = "unknown"
    if is_integer(patch) and patch > 0 and is_integer(extra):
        tokens = (vision.image_size // patch) ** 2 + extra - (strategy == "default")
    if tokens != vision.tile_features:
        raise UserError(
            f"{folder}: by processor_config.json (patch_size {shown(patch)}, "
            f"num_additional_image_tokens {shown(extra)}, vision_feature_select_strategy "
            f"{shown(strategy)}) a tile has {tokens} placeholders, by config.json "
            f"{vision.tile_features}"
        )
