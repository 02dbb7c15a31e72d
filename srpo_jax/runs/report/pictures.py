"""Pictures of the report, which are inside the page as data URIs."""

from __future__ import annotations

import base64
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.errors import one_line
from srpo_jax.runs.report.markup import DataUri

SIDE = 360  # pixels; shown at most that large on a screen
LARGE, SMALL = 0.3, 8000  # a PNG of more bytes a pixel, and bytes, counts as a photograph


class Picture(NamedTuple):
    """uri: None for a picture that cannot be shown; then `problem` says why. Sizes in pixels."""

    uri: DataUri | None
    width: int = 0
    height: int = 0
    problem: str = ""


def picture(source: bytes | pathlib.Path | None, side: int = SIDE) -> Picture:
    """The picture in the bytes or the file `source`, at most `side` pixels wide and high."""
    if source is None:
        return Picture(None, problem="no picture")
    try:
        image = load_image(source, what="picture")
    except (RecordError, OSError) as error:
        return Picture(None, problem=one_line(error, 120))
    image.thumbnail((side, side))
    buffer, form = io.BytesIO(), "png"
    image.save(buffer, "PNG", optimize=True)
    if buffer.tell() > max(SMALL, LARGE * image.width * image.height):
        buffer, form = io.BytesIO(), "jpeg"
        image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(DataUri(f"data:image/{form};base64,{data}"), *image.size)


def find_image(name: Any, roots: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The picture of an answer, below one of the roots; a missing one keeps its own name."""
    if not isinstance(name, str) or not name:
        return None
    for root in roots:
        path = root / name
        try:
            if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                return path
        except OSError:  # no file can have this name
            pass
    return pathlib.Path(pathlib.Path(name).name)
