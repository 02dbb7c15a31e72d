"""LLaVA-1.5 (`llava`) and LLaVA-NeXT (`llava_next`): CLIP, an MLP, a Llama or Mistral decoder.

LLaVA-1.5 shows a picture as one square tile. LLaVA-NeXT shows the whole picture as one tile and
then cuts it into a grid of them, in the arrangement that suits its shape best ("anyres"); features
of the padding around the picture are left out, and each row of features ends with a learned
newline. All of that is gather indices, computed here from the picture's size.

A grid is (1,) for LLaVA-1.5, and (height, width) in pixels for LLaVA-NeXT.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import Family, ModelConfig
from srpo_jax.models.blocks.config_reader import Reader, is_integer, shown
from srpo_jax.models.blocks.image_layout import NEWLINE, Grid, ImageLayout
from srpo_jax.models.blocks.text_config import read_text, root_ties
from srpo_jax.models.blocks.tiled_vit import TileConfig, tile_layout

# What these files mean when they leave a key out: the class defaults of transformers' LlavaConfig
# and LlavaNextConfig (ROOT), LlavaNextConfig (PINPOINTS) and CLIPVisionConfig (VISION). A test
# compares them. The decoder's are in blocks/text_config.py.
ROOT_DEFAULTS: dict[str, Any] = {
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
}
LONGEST_SIDE, MOST_PINPOINTS = 64, 4096  # tiles along a side, arrangements of them
PINPOINT_DEFAULT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@dataclasses.dataclass(frozen=True)
class VisionConfig(TileConfig):
    """The tiles' tower, and what is cut into them.

    blocks: how many the checkpoint has, `depth` of which are run. pinpoints: (height, width) in
    pixels of the arrangements of tiles to choose from; none for LLaVA-1.5.
    """

    blocks: int = 0
    pinpoints: tuple[tuple[int, int], ...] = ()


def read_config(where: str, raw: dict[str, Any], family: Family) -> ModelConfig:
    """The model of a parsed config.json; `where` names it in errors (UserError)."""
    if "text_config" not in raw:  # `model_type` of the authors' own files is "llava" too
        raise UserError(f"{where}: no text_config; use a converted checkpoint (llava-hf/...)")
    root = Reader(where, raw, ROOT_DEFAULTS)
    text_raw = root.section("text_config")
    kind = Reader(f"{where} (text_config)", text_raw).only(
        "model_type", "llama", "mistral", default="llama"
    )
    if kind == "mistral" and "sliding_window" not in text_raw:
        raise UserError(
            f"{where} (text_config): missing key 'sliding_window', which means 4096 for a Mistral "
            "decoder and is not supported; set it to null if the model has none"
        )
    text = read_text(where, raw, kind)
    if raw["model_type"] == "llava_next":  # ties where the root says so, unlike LLaVA-1.5
        text = dataclasses.replace(text, tie_word_embeddings=root_ties(where, raw))
    return ModelConfig(
        raw["model_type"],
        text,
        _read_vision(where, raw, root),
        image_token_id=root.token("image_token_index", text.vocab_size),
        family=family,
    )


def _read_vision(where: str, raw: dict[str, Any], root: Reader) -> VisionConfig:
    name = f"{where} (vision_config)"
    get = Reader(name, root.section("vision_config"), VISION_DEFAULTS)
    get.only("model_type", "clip_vision_model", default="clip_vision_model")
    root.only("projector_hidden_act", "gelu")
    anyres = raw["model_type"] == "llava_next"
    # transformers cannot lay the class token's features out in a grid either.
    strategy = root.only(
        "vision_feature_select_strategy", *(("default",) if anyres else ("default", "full"))
    )
    blocks, layer = get.integer("num_hidden_layers"), root("vision_feature_layer")
    # Counted as transformers' hidden_states are: 0 is the input of the first block, -1 the output
    # of the last one, and the norm behind that is never applied.
    depth = layer + blocks + 1 if is_integer(layer) and layer < 0 else layer
    if not is_integer(depth) or not 1 <= depth <= blocks:
        raise UserError(
            f"{where}: vision_feature_layer {shown(layer)} is not supported; only the number of "
            f"one of the {blocks} blocks' outputs (-1 is the last)"
        )
    vision = VisionConfig(
        depth=depth,
        blocks=blocks,
        hidden_size=get.integer("hidden_size"),
        num_heads=get.integer("num_attention_heads"),
        intermediate_size=get.integer("intermediate_size"),
        image_size=get.integer("image_size"),
        patch_size=get.integer("patch_size"),
        in_channels=get.integer("num_channels"),
        activation=get.only("hidden_act", "quick_gelu", "gelu"),
        eps=get.number("layer_norm_eps"),
        class_token=True,
        keep_class_token=strategy == "full",
        patch_bias=False,
        pre_norm=True,
        projector_bias=root.only("multimodal_projector_bias", True, False),
        newline=anyres,
    )
    if vision.hidden_size % vision.num_heads or vision.image_size % vision.patch_size:
        raise UserError(
            f"{name}: {vision.num_heads} heads do not divide hidden_size {vision.hidden_size}, or "
            f"patch_size {vision.patch_size} does not divide image_size {vision.image_size}"
        )
    if not anyres:
        return vision
    pinpoints = Reader(where, raw, {"image_grid_pinpoints": PINPOINT_DEFAULT})(
        "image_grid_pinpoints"
    )
    return dataclasses.replace(vision, pinpoints=read_pinpoints(where, pinpoints, vision))


def read_pinpoints(where: str, value: Any, vision: TileConfig) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints` of a parsed file, checked: UserError names `where`."""
    size = vision.image_size
    try:
        pinpoints = tuple((height, width) for height, width in value)
        sides = [n for pinpoint in pinpoints for n in pinpoint]
        whole = bool(sides) and all(is_integer(n) and n > 0 and n % size == 0 for n in sides)
        whole = whole and max(sides) <= LONGEST_SIDE * size and len(pinpoints) <= MOST_PINPOINTS
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(
            f"{where}: image_grid_pinpoints {shown(value)} must be pairs (height, width) of "
            f"multiples of the tiles' {size} pixels, at most {LONGEST_SIDE} of them"
        )
    return pinpoints


def best_resolution(height: int, width: int, pinpoints: tuple) -> tuple[int, int]:
    """The (height, width) of `pinpoints` that keeps most pixels of a picture, and of those that
    keep as many the one with least space around it (the first of equals).

    Pixels kept are counted with transformers' roundings, so that no borderline case differs.
    """

    def kept_and_less_waste(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=kept_and_less_waste)


def image_layout(grid: Grid, config: ModelConfig) -> ImageLayout:
    """The layout of one picture. Raises UserError for a grid that is not of this family."""
    vision = config.vision
    if len(grid) != (2 if vision.pinpoints else 1) or min(grid) < 1:
        raise UserError(f"image grid {tuple(grid)} is not one of a {config.model_type} model")
    index = [np.arange(vision.tile_features)]  # the whole picture as one tile
    tiles = 1
    if vision.pinpoints:
        height, width = grid
        unpadded = _grid_features(height, width, vision)
        newlines = np.full((len(unpadded), 1), NEWLINE)
        index.append(np.concatenate([unpadded, newlines], axis=1).reshape(-1))
        tiles += _tile_grid(height, width, vision).prod()
    return tile_layout(tiles, np.concatenate(index), vision)


def _tile_grid(height: int, width: int, vision: VisionConfig) -> np.ndarray:
    """(rows, columns) of the tiles that a picture is cut into."""
    return np.array(best_resolution(height, width, vision.pinpoints)) // vision.image_size


def _grid_features(height: int, width: int, vision: VisionConfig) -> np.ndarray:
    """int [rows, columns]: the feature at each place of the picture without its padding.

    The tiles' features laid out as one grid, cut alike at both ends of the axis that was padded.
    """
    rows, cols = _tile_grid(height, width, vision)
    side, unit = vision.side, vision.patch_unit
    tiles = unit + np.arange(rows * cols * unit).reshape(rows, cols, side, side)
    whole = tiles.transpose(0, 2, 1, 3).reshape(rows * side, cols * side)
    if width / height > whole.shape[1] / whole.shape[0]:
        # transformers' rounding; the padding is halved downwards, so a row of it can stay.
        shown = int(round(height * (whole.shape[1] / width), 7))
        padding = (whole.shape[0] - shown) // 2
        return whole[padding : whole.shape[0] - padding]
    shown = int(round(width * (whole.shape[0] / height), 7))
    padding = (whole.shape[1] - shown) // 2
    return whole[:, padding : whole.shape[1] - padding]
