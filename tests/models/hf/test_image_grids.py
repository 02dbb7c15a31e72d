"""The grid of a picture from its size alone equals what its processor makes of the pixels."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from srpo_jax.errors import UserError
from srpo_jax.models.hf.processor import Processor
from tests.support.families import CASES


@pytest.fixture(scope="module", params=CASES)
def processor(request, tmp_path_factory):
    return Processor.from_dir(CASES[request.param].make(tmp_path_factory.mktemp(request.param)))


def grid_or_error(make) -> object:
    try:
        return make()
    except UserError as error:
        return str(error)


side = st.integers(1, 8) | st.integers(1, 700)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(side, side)
@example(200, 1)
@example(1, 201)
@example(900, 3)
@example(3, 900)
def test_grid_from_the_size_alone(processor, width, height):
    """Odd shapes too; a picture that is refused is refused in the same words."""
    decoded = grid_or_error(lambda: processor.image(Image.new("RGB", (width, height)))[1])
    assert grid_or_error(lambda: processor.images.grid(width, height)) == decoded
