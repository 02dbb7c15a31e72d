"""Read an untrusted image file safely: allowed formats, limits before decoding, one typed error.

Every image of the project passes through `load_image`, so that training, exploring and
evaluating see the same pixels: RGB, upright, transparency on white.
"""

from __future__ import annotations

import io
import os
import pathlib
import struct
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from srpo_jax.data_pipelines.image_cost import TooCostly, check_file, check_metadata
from srpo_jax.data_pipelines.records import Record, RecordError
from srpo_jax.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64_000_000  # a 410 KiB PNG can hold 144 million pixels
MAX_SIDE = 16_384
# What turns a picture upright, by its EXIF orientation.
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The names of a PNG's text chunks that Pillow looks for an orientation in.
ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

# warnings.catch_warnings swaps filters of the whole process, so two decoding threads must not
# overlap in it. Decoding a photo takes milliseconds; resizing happens outside the lock.
_WARNINGS_LOCK = threading.Lock()


def read_image_bytes(path: str | os.PathLike, *, what: str) -> bytes:
    """The bytes of an image file, at most MAX_BYTES. `what` names the record in errors."""
    try:
        if not pathlib.Path(path).is_file():
            raise RecordError(f"{what}: image file {path} does not exist")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        why = e.strerror or type(e).__name__
        raise RecordError(f"{what}: cannot read image file {path}: {why}") from None
    if len(data) > MAX_BYTES:
        raise RecordError(f"{what}: image file {path} is larger than {MAX_BYTES} bytes")
    return data


def load_image(path_or_bytes: str | os.PathLike | bytes, *, what: str) -> Image.Image:
    """Decode to an RGB image: EXIF orientation applied, transparency on white, first frame.

    `what` names the record (or file) in the error. Raises RecordError for a format other than
    JPEG, PNG or WEBP, for an image above the limits (checked on the header, before decoding),
    for one that takes far longer to decode than its size explains (image_cost.py), for a truncated
    or corrupt one, and for anything that Pillow only warns about.
    """
    return _read(path_or_bytes, what, lambda image: _to_rgb(_upright(image)))


def image_size(path_or_bytes: str | os.PathLike | bytes, *, what: str) -> tuple[int, int]:
    """(width, height) that `load_image` will give, from the header: no pixel is decoded.

    Raises RecordError as load_image does, but for damaged pixels. (A PNG that has its orientation
    behind its pixels, which hardly any writer does, is decoded.)
    """
    return _read(path_or_bytes, what, _upright_size)


def _read(path_or_bytes: Any, what: str, take: Callable[[Image.Image], Any]) -> Any:
    """What `take` returns for the opened, not yet decoded image, within the limits of load_image
    and with its errors.
    """
    if isinstance(path_or_bytes, (bytes, bytearray)):
        data = bytes(path_or_bytes)
        if len(data) > MAX_BYTES:
            raise RecordError(f"{what}: image is larger than {MAX_BYTES} bytes")
    else:
        data = read_image_bytes(path_or_bytes, what=what)
        what = f"{what}: {path_or_bytes}"
    try:
        check_file(data)
        with _WARNINGS_LOCK, warnings.catch_warnings():
            # Only Pillow's own warnings: other threads run under these filters meanwhile.
            warnings.filterwarnings("error", module=r"PIL\.")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise RecordError(
                    f"{what}: image is {width}x{height}, "
                    f"the limits are {MAX_SIDE} a side and {MAX_PIXELS} pixels"
                )
            if image.format == "PNG" and _orientation_comes_late(data):
                image.load()
            check_metadata(image.info)
            return take(image)
    except RecordError:
        raise
    except TooCostly as e:
        raise RecordError(f"{what}: the image would take too long to decode: {e}") from None
    except Image.UnidentifiedImageError:
        raise RecordError(f"{what}: not a {', '.join(FORMATS)} image") from None
    except Exception as e:  # a decoder can raise anything on hostile bytes
        why = one_line(e, 120)
        raise RecordError(f"{what}: cannot decode the image: {type(e).__name__}: {why}") from None


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes all other EXIF data again, with what that points at.
    image.load()
    method = TURNED.get(_orientation(image))
    return image.copy() if method is None else image.transpose(method)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _orientation(image: Image.Image) -> Any:
    # Not image.getexif(): that of a PNG decodes the pixels, to see what stands behind them.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _orientation_comes_late(png: bytes) -> bool:
    """Whether a PNG may say behind its pixels how it is turned (EXIF or XMP)."""
    at, pixels = 8, False
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        pixels = pixels or kind == b"IDAT"
        if pixels and (kind == b"eXIf" or png.startswith(ORIENTED, at + 8)):
            return True
        at += length + 12
    return False


def load_record_images(record: Record) -> list[Image.Image]:
    """All images of a record, decoded, in order. Errors name the record."""
    return [load_image(p, what=f"record {record.id!r}") for p in record.image_paths()]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
