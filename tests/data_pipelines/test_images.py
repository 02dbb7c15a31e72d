"""Untrusted pictures: what is refused, before decoding where it matters, and what is normalised."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, WebPImagePlugin

from srpo_jax.data_pipelines import images
from srpo_jax.data_pipelines.images import image_size, load_image
from srpo_jax.data_pipelines.records import RecordError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says width x height, whatever the pixel data is."""

    def chunk(kind, body):
        body_sum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + body_sum

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


RED = Image.new("RGB", (40, 24), (200, 10, 30))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
HOSTILE = {
    "empty": (b"", "not a JPEG, PNG, WEBP image"),
    "html": (b"<html>404</html>", "not a JPEG, PNG, WEBP image"),
    "gif": (encoded(RED, "GIF"), "not a JPEG, PNG, WEBP image"),
    "tiff": (encoded(RED, "TIFF"), "not a JPEG, PNG, WEBP image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a JPEG, PNG, WEBP image"),
    "truncated": (encoded(NOISE, "JPEG")[:2000], "cannot decode the image: OSError"),
    "bad data": (png(64, 64, b"xx"), "cannot decode the image"),
    "bomb": (png(12_000, 12_000, zlib.compress(b"\0" * 36_001 * 100)), "cannot decode the image"),
    "many pixels": (png(9_000, 8_000), "image is 9000x8000, the limits are"),
    "long side": (png(20_000, 10), "image is 20000x10, the limits are"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_one_typed_error(name):
    """RecordError on one line that names the record, whatever Pillow does with the bytes."""
    data, why = HOSTILE[name]
    with pytest.raises(RecordError) as caught:
        load_image(data, what="record 'r7'")
    assert str(caught.value).startswith("record 'r7': ") and why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_hold_for_files(tmp_path, monkeypatch):
    """A file above the byte limit is not read whole; a missing one and a folder are named."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RED))
    assert load_image(path, what="r").size == (40, 24)
    monkeypatch.setattr(images, "MAX_BYTES", 20)
    with pytest.raises(RecordError, match="a.png is larger than 20 bytes"):
        load_image(path, what="r")
    with pytest.raises(RecordError, match="image is larger than 20 bytes"):
        load_image(path.read_bytes(), what="r")
    for missing in (tmp_path / "nope.png", tmp_path):
        with pytest.raises(RecordError, match="r: image file .* does not exist"):
            load_image(missing, what="r")


def test_orientation_is_applied():
    """A photo that EXIF turns by 90 degrees comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    left_white = Image.new("RGB", (40, 24))
    left_white.paste((255, 255, 255), (0, 0, 20, 24))
    upright = load_image(encoded(left_white, "JPEG", exif=exif, quality=95), what="r")
    assert upright.size == (24, 40)
    assert upright.getpixel((12, 5))[0] > 200 > 50 > upright.getpixel((12, 35))[0]


@pytest.mark.parametrize(
    "image, pixel",
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 40_000, np.uint16)), (156, 156, 156)),
        (RED.convert("P"), None),
    ],
    ids=["RGBA", "LA", "L", "1", "16 bit", "palette"],
)
def test_every_mode_becomes_rgb(image, pixel):
    """Transparency lies on white, 16 bits keep their high byte."""
    out = load_image(encoded(image), what="r")
    assert out.mode == "RGB" and (pixel is None or out.getpixel((1, 1)) == pixel)


def test_transparent_colour_and_other_formats():
    """A PNG's transparent colour is transparency too; WEBP and CMYK JPEG are read."""
    keyed = encoded(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9))
    assert load_image(keyed, what="r").getpixel((0, 0)) == (255, 255, 255)
    webp = load_image(encoded(RED, "WEBP", lossless=True), what="r")
    assert webp.getpixel((0, 0)) == (200, 10, 30)
    assert load_image(encoded(RED.convert("CMYK"), "JPEG"), what="r").mode == "RGB"


def test_threads_decode_the_same():
    """Many threads at once: same pixels, and no warning filter is left behind."""
    import warnings

    data, before = encoded(NOISE, "JPEG"), list(warnings.filters)
    out = []
    workers = [
        threading.Thread(
            target=lambda: out.append(np.asarray(load_image(data, what="r")).tobytes())
        )
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(out) == 8 and len(set(out)) == 1
    assert warnings.filters == before


def turned(image: Image.Image, kind: str, orientation: int, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def late_exif(png: bytes) -> bytes:
    """The PNG with its EXIF chunk moved behind the pixels."""
    at, before, exif = 8, png[:8], b""
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        piece = png[at : at + length + 12]
        at += length + 12
        if kind == b"eXIf":
            exif = piece
        else:
            before += exif + piece if kind == b"IEND" else piece
    return before


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_size_from_the_header_is_the_decoded_one(kind, orientation, monkeypatch):
    """However the photo is turned, and without decoding it."""
    data = turned(RED, kind, orientation)
    upright = load_image(data, what="r").size
    late = late_exif(data) if kind == "PNG" else data
    assert image_size(late, what="r") == load_image(late, what="r").size == upright
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(data, what="r") == upright


def test_text_behind_the_pixels_is_not_decoded_for(monkeypatch):
    """ImageMagick writes dates there: only EXIF and XMP may hold an orientation."""
    plain = encoded(RED)
    text = b"tEXtdate:create\x002026-01-01"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(plain[:-12] + chunk + plain[-12:], what="r") == RED.size


@pytest.mark.parametrize("name", [n for n in HOSTILE if n not in ("truncated", "bad data")])
def test_a_header_that_cannot_be_read_is_the_same_error(name):
    """What is wrong before the pixels is told at once, in the words of load_image. A bomb is
    refused by either, by its size or by what Pillow says of it."""
    with pytest.raises(RecordError) as whole:
        load_image(HOSTILE[name][0], what="record 'r7'")
    with pytest.raises(RecordError) as header:
        image_size(HOSTILE[name][0], what="record 'r7'")
    assert str(header.value) == str(whole.value)
    assert image_size(HOSTILE["truncated"][0], what="r") == NOISE.size
