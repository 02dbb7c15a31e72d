"""A checkpoint's image processor: loaded by transformers, its settings checked.

Its files are a stranger's: a standard deviation of 0 makes every pixel infinite, a side of a
million pixels fills the memory at the first picture, and both would show after hours of sampling.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config_reader import check_values, is_integer, shown
from srpo_jax.models.blocks.hf_folder import loaded, read_optional_json
from srpo_jax.models.blocks.image_layout import Grid, Images

FILES = ("preprocessor_config.json", "processor_config.json")
# Objects of sizes in pixels, and the largest side. The Qwen families' sizes count all pixels of a
# picture instead: the smallest that it is enlarged to, and the largest.
SIZES = ("size", "crop_size", "max_image_size")
LONGEST_SIDE, SMALLEST, LARGEST = 1 << 14, 1 << 24, 1 << 31
MOST_TILES = 256
PROBE = (60, 40)  # pixels of the picture that is tried


def load_image_processor(folder: str | pathlib.Path, kind: Any) -> Any:
    """transformers' image processor of a checkpoint folder. kind: its class.

    Raises UserError if its files are damaged, if it does not resize pictures, or if a setting is
    outside of any sensible range.
    """
    for name in FILES:
        file = pathlib.Path(folder) / name
        content = read_optional_json(file)
        content.pop("chat_template", None)
        check_values(str(file), content)
    process = loaded(folder, "image processor", kind.from_pretrained)
    where = f"{folder}: preprocessor_config.json"
    if not getattr(process, "do_resize", True):
        raise UserError(f"{where}: do_resize false is not supported; set it to true")
    for name in ("image_mean", "image_std"):
        _check_channels(where, name, getattr(process, name, None))
    factor = getattr(process, "rescale_factor", None)
    if factor is not None and not (_is_number(factor) and 0 < factor <= 1):
        raise UserError(f"{where}: rescale_factor must lie in (0, 1], got {shown(factor)}")
    counts_pixels = hasattr(process, "merge_size")  # as the Qwen families
    for name in SIZES:
        _check_sizes(where, name, getattr(process, name, None), counts_pixels)
    for name in ("min_patches", "max_patches"):
        value = getattr(process, name, None)
        if value is not None and not (is_integer(value) and 0 < value <= MOST_TILES):
            raise UserError(f"{where}: {name} must be 1 to {MOST_TILES}, got {shown(value)}")
    return process


def check_shown(folder: str | pathlib.Path, images: Images, config: Any) -> Grid:
    """The grid of a small picture. config: the ModelConfig.

    UserError if the picture does not become finite patches, in the number and on the grid that its
    size says.
    """
    picture = Image.linear_gradient("L").resize(PROBE).convert("RGB")
    try:
        patches, grid = images(picture)
        told = images.grid(*PROBE)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{folder}: cannot show a picture: {one_line(error, 200)}") from error
    wanted = (len(config.family.image_layout(grid, config).order), config.vision.patch_dim)
    if tuple(grid) != tuple(told) or patches.shape != wanted:
        raise UserError(
            f"{folder}: a picture of {PROBE[0]}x{PROBE[1]} pixels becomes patches {patches.shape} "
            f"on grid {tuple(grid)}; by its size they are {wanted} on {tuple(told)}"
        )
    if not np.isfinite(patches).all():
        raise UserError(f"{folder}: a picture becomes numbers that are not finite")
    return grid


def _check_channels(where: str, name: str, value: Any) -> None:
    if value is None:
        return
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    lowest = 1e-4 if name == "image_std" else -math.inf
    fine = all(_is_number(v) and abs(v) <= 1e3 and v >= lowest for v in values)
    if not fine or len(values) not in (1, 3):
        rule = "from 1e-4 to 1000" if name == "image_std" else "up to 1000"
        raise UserError(f"{where}: {name} must be 3 numbers {rule}, got {shown(value)}")


def _check_sizes(where: str, name: str, value: Any, counts_pixels: bool) -> None:
    sides = {k: v for k, v in dict(value or {}).items() if v is not None}
    for key, side in sides.items():
        largest = LONGEST_SIDE
        if counts_pixels:
            largest = SMALLEST if key == "shortest_edge" else LARGEST
        if not is_integer(side) or not 0 < side <= largest:
            raise UserError(f"{where}: {name}.{key} must be 1 to {largest}, got {shown(side)}")
    if counts_pixels and sides.get("shortest_edge", 0) > sides.get("longest_edge", math.inf):
        raise UserError(
            f"{where}: min_pixels {sides['shortest_edge']} is more than max_pixels "
            f"{sides['longest_edge']}"
        )


def _is_number(value: Any) -> bool:
    return (is_integer(value) or isinstance(value, float)) and math.isfinite(value)
