"""The types in which the families say what a picture is to a model: its grid, its arrays, its text.

numpy only. Everything depends on token ids and picture grids alone, and is computed once per
example on the host, so that nothing on the device has a data-dependent shape.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from PIL import Image

# What a grid says depends on the family: (frames, patch rows, patch columns) for the Qwen families,
# as `image_grid_thw` of the HF processor; the arrangement of tiles for the others.
Grid = tuple[int, ...]

# Values of image_index that are not the number of a picture's feature.
TEXT, NEWLINE = -1, -2


@dataclasses.dataclass(frozen=True)
class PatchField:
    """An array with one entry per patch that a vision tower reads besides the patches.

    shape: of one entry. is_segment: whether these are segment ids (by the name, which then ends in
    `_seg`): unique within a row, -1 for padding. All others are padded with 0.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: Any = np.int32
    is_segment: bool = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "is_segment", self.name.endswith("_seg"))


@dataclasses.dataclass(frozen=True)
class ImageLayout:
    """Where the patches of one picture go, and which of its features each placeholder shows.

    order int32 [p]: for each patch, in the order the model reads them, its row of the processor's
    output. fields: per-patch arrays [p, ...] of the family (its vision config names them; segment
    ids count from 0). token_index int32 [m]: for the j-th placeholder token the picture's feature
    0 .. features-1, or NEWLINE. features: how many the tower makes of the picture.
    """

    order: np.ndarray
    fields: dict[str, np.ndarray]
    token_index: np.ndarray
    features: int


class Images(Protocol):
    """The image processor of a checkpoint folder, and how its chat text shows pictures.

    placeholder: what the chat template writes once per picture. suppress: ids, besides the image
    placeholder's, that must never be sampled. process: transformers' image processor of the folder.
    call: what transformers' processor class passes to `process` at every call, besides the picture.
    """

    placeholder: str
    process: Any
    call: dict[str, Any]

    @property
    def suppress(self) -> frozenset[int]: ...

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, Grid]:
        """An RGB picture -> patches float32 [p, patch_dim] in the processor's order, grid.

        Raises UserError if the picture has a shape that the processor refuses.
        """
        ...

    def grid(self, width: int, height: int) -> Grid:
        """The grid that a call gives for a picture of this size, without pixels; same errors."""
        ...

    def limit(self, max_pixels: int) -> dict[str, Any]:
        """From now on no picture is shown with more pixels. Returns the settings of the image
        processor that this changed, as they stand in its file.

        Raises UserError if the family cannot show a picture with so few.
        """
        ...

    def expansion(self, grid: Any) -> str:
        """The text that replaces a picture's placeholder before it is tokenised."""
        ...
