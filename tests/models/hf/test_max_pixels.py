"""data.max_pixels: no picture is shown with more, in any family that can show one with fewer."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.export.limited_pixels import limiting
from srpo_jax.models.hf.processor import Processor
from tests.support.families import CASES
from tests.support.tiny import picture

FIXED = ("llava", "llava_next")
SIZES = ((300, 200), (200, 310), (500, 500), (90, 420), (40, 30))


def shown(processor, size) -> tuple[tuple[int, ...], int]:
    """(grid, pixels) of a picture; a thumbnail besides the tiles is not counted."""
    patches, grid = processor.image(picture(*size))
    assert grid == processor.images.grid(*size)
    vision = processor.config.vision
    pixels = len(patches) * vision.patch_size**2
    if (
        "image_size" in dir(vision)
        and len(patches) > (side := vision.image_size // vision.patch_size) ** 2
    ):
        pixels -= side**2 * vision.patch_size**2
    return grid, pixels


@pytest.mark.parametrize("name", [name for name in CASES if name not in FIXED])
def test_no_picture_is_shown_with_more_pixels(name, tmp_path):
    """Large ones with fewer than before; what the grid says is what is made; an export says so to
    whoever loads it; too few are refused in one line."""
    folder = CASES[name].make(tmp_path / "model")
    own = {size: shown(Processor.from_dir(folder), size) for size in SIZES}
    most = max(pixels for _, pixels in own.values())
    limit = most * 2 // 3
    limited = Processor.from_dir(folder, max_pixels=limit)
    found = {size: shown(limited, size) for size in SIZES}
    assert all(pixels <= limit for _, pixels in found.values())
    assert found != own
    if name.startswith("qwen"):  # the others enlarge small pictures to tiles
        assert found[40, 30] == own[40, 30]
    same = Processor.from_dir(folder, max_pixels=10**7)
    assert {size: shown(same, size) for size in SIZES} == own
    exported = CASES[name].make(tmp_path / "exported")
    limiting(str(folder), limited.config, limit, None)(exported)
    theirs = Processor.from_dir(exported)
    for size in SIZES:
        one, other = (p.image(picture(*size)) for p in (limited, theirs))
        assert one[1] == other[1] and np.array_equal(one[0], other[0])
    with pytest.raises(UserError, match="data.max_pixels=10: .*at least as high") as error:
        Processor.from_dir(folder, max_pixels=10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FIXED)
def test_a_family_of_fixed_sizes_says_so(name, tmp_path):
    """Its sizes stand in config.json."""
    folder = CASES[name].make(tmp_path / "model")
    with pytest.raises(UserError, match="data.max_pixels=10000: config.json says .* set it to 0"):
        Processor.from_dir(folder, max_pixels=10000)
