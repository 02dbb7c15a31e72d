"""srpo_jax/models/blocks/image_settings.py, and what else a folder has for its processor: settings
that none has are one line when the folder is read, not a picture that is wrong hours later."""

from __future__ import annotations

import json

import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.image_settings import load_image_processor
from srpo_jax.models.hf.processor import Processor
from tests.support import tiny
from tests.support.families import CASES

NAN = float("nan")
FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
FAMILIES = ("qwen2_5_vl", "internvl3", "llava", "llava_next", "smolvlm")


def edit(folder, file, **changes):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return request.param, CASES[request.param].make(tmp_path_factory.mktemp(request.param) / "m")


@pytest.fixture
def folder(family):
    """The family's checkpoint, whose settings are put back behind the test."""
    _, folder = family
    before = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    yield folder
    for name, content in before.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"do_resize": False}, "do_resize false"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std"),
        ({"image_std": [NAN] * 3}, "image_std is nan"),
        ({"image_std": [0.2, 0.2]}, "image_std must be 3"),
        ({"image_mean": "0.5"}, "image_mean must be 3"),
        ({"image_mean": [1e9] * 3}, "image_mean"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": -1 / 255}, "rescale_factor"),
        ({"resample": 77}, "cannot|Unknown"),
    ],
)
def test_settings_that_no_processor_has_are_refused(folder, change, says):
    """In every family, before a picture is shown, by a line that names the folder."""
    edit(folder, "preprocessor_config.json", **change)
    with pytest.raises(UserError, match=says) as error:
        Processor.from_dir(folder)
    assert str(error.value).startswith(str(folder)) and str(error.value).isprintable()


SIZES = {
    "qwen2_5_vl": (
        {"max_pixels": 10**12},
        {"min_pixels": 10**9},
        {"min_pixels": 12845057},
    ),
    "internvl3": ({"size": {"height": 10**6, "width": 10**6}}, {"max_patches": 10**9}),
    "llava": ({"size": {"shortest_edge": 10**6}}, {"crop_size": {"height": 10**6, "width": 56}}),
    "llava_next": ({"size": {"shortest_edge": "56"}}, {"crop_size": {"height": None}}),
    "smolvlm": ({"size": {"longest_edge": 10**6}}, {"max_image_size": {"longest_edge": -24}}),
}


def test_sizes_that_would_fill_the_memory_are_refused(family, folder):
    """By the setting's name, without a picture of that size."""
    for change in SIZES[family[0]]:
        before = (folder / FILES[0]).read_bytes()
        edit(folder, "preprocessor_config.json", **change)
        with pytest.raises(UserError, match="must be|is more than|cannot"):
            Processor.from_dir(folder)
        (folder / FILES[0]).write_bytes(before)
    Processor.from_dir(folder)


SENSELESS = (None, True, -1, 10**9, 2**70, 1.5, NAN, "2", [1], {}, "\x1b\n" * 300)


@pytest.mark.slow
def test_a_senseless_setting_is_one_line_or_a_processor_that_works(family, folder):
    """Every third key of every file with every senseless value."""
    tried = refused = 0
    for file in FILES:
        if not (folder / file).is_file():
            continue
        before = json.loads((folder / file).read_text())
        keys = [key for key in before if key not in ("added_tokens_decoder", "chat_template")]
        for key in sorted(keys)[len(file) % 3 :: 3]:
            for value in SENSELESS[tried % 2 :: 2]:
                (folder / file).write_text(json.dumps(before | {key: value}))
                tried += 1
                try:
                    processor = Processor.from_dir(folder)
                except UserError as error:
                    refused += 1
                    assert str(error).isprintable() and len(str(error)) < 700
                else:
                    patches, grid = processor.image(tiny.picture(70, 56))
                    assert np.isfinite(patches).all() and processor.prompt_tokens("?", [grid])
        (folder / file).write_text(json.dumps(before))
    assert tried > refused > 0


def test_sizes_in_two_spellings_are_what_transformers_takes(tmp_path):
    """size beside min_pixels and max_pixels, alike or not: grids and pixels are transformers'."""
    from transformers import Qwen2VLImageProcessorPil

    folder = tiny.make(tmp_path)
    for change in (
        {"size": {"shortest_edge": 3136, "longest_edge": 15680}},
        {"size": {"shortest_edge": 3136, "longest_edge": 15680}, "max_pixels": 31360},
        {"size": {"shortest_edge": 50176, "longest_edge": 62720}, "min_pixels": 784},
    ):
        edit(folder, "preprocessor_config.json", **change)
        ours = load_image_processor(folder, Qwen2VLImageProcessorPil)
        theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)
        assert ours.size == theirs.size
        processor = Processor.from_dir(folder)
        for size in ((300, 200), (30, 40)):
            shown = theirs(tiny.picture(*size), return_tensors="np")
            patches, grid = processor.image(tiny.picture(*size))
            assert np.array_equal(patches, shown["pixel_values"])
            assert grid == tuple(shown["image_grid_thw"][0]) == processor.images.grid(*size)
