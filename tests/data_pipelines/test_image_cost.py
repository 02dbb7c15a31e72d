"""Files whose decoding costs far more than their bytes: refused at once, and no honest file is."""

from __future__ import annotations

import io
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from srpo_jax.data_pipelines import image_cost
from srpo_jax.data_pipelines.image_cost import MAX_SCANS
from srpo_jax.data_pipelines.images import image_size, load_image
from srpo_jax.data_pipelines.records import RecordError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8))


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP", lossless=True)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(body) + 2) + body


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_jpeg(*pieces: bytes) -> bytes:
    return JPEG[:2] + b"".join(pieces) + JPEG[2:]


def in_png(*pieces: bytes) -> bytes:
    return PNG[:33] + b"".join(pieces) + PNG[33:]


def behind_pixels(*pieces: bytes) -> bytes:
    return PNG[:-12] + b"".join(pieces) + PNG[-12:]


def tiff(count: int, size: int, order: str = "<", orientation: int = 1) -> bytes:
    """A directory of an orientation and `count` entries that all hold the same `size` bytes."""
    start = 8 + 2 + 12 * (count + 1) + 4
    entries = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    for i in range(count):
        entries += struct.pack(f"{order}HHII", 0x9000 + i, 7, size, start)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", count + 1) + entries + bytes(4) + bytes(size)


def raw_profile(exif: bytes) -> bytes:
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def in_webp(exif: bytes) -> bytes:
    width, height = (struct.pack("<I", side - 1)[:3] for side in NOISE.size)
    head = b"VP8X" + struct.pack("<IB3x", 10, 8) + width + height
    padded = exif + b"\0" * (len(exif) % 2)
    body = head + WEBP[12:] + b"EXIF" + struct.pack("<I", len(exif)) + padded
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def scans(count: int, **options) -> bytes:
    """A progressive JPEG of so many scans, the last one repeated."""
    data = encoded("JPEG", progressive=True, **options)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


EXIF = b"Exif\0\0"
BOMB = tiff(400, 30_000)
COSTLY = {
    "scans": (scans(MAX_SCANS + 1), "more than 32 scans"),
    "scans without end": (scans(2_000), "more than 32 scans"),
    "scans with restarts": (scans(MAX_SCANS + 1, restart_marker_blocks=1), "more than 32 scans"),
    "comments": (in_jpeg(segment(0xFE, b"") * 300_000), "more than 40000 segments"),
    "tables": (in_jpeg(segment(0xDB, b"") * 300_000), "more than 40000 segments"),
    "fill": (in_jpeg(b"\xff" * 5_000_000), "more than 40000 segments or bytes between"),
    "escapes": (in_jpeg(b"\xff\0" * 2_000_000), "more than 40000 segments or bytes between"),
    "short lengths": (in_jpeg(b"\xff\xfe\0\0" * 300_000), "more than 40000 segments"),
    "many EXIF": (in_jpeg(segment(0xE1, EXIF + bytes(400)) * 20_000), "more than 400 segments"),
    "JPEG EXIF": (in_jpeg(segment(0xE1, EXIF + BOMB)), "EXIF entries"),
    "EXIF in parts": (
        in_jpeg(segment(0xE1, EXIF + BOMB[:999]), segment(0xE1, EXIF + BOMB[999:])),
        "EXIF entries",
    ),
    "big-endian EXIF": (in_jpeg(segment(0xE1, EXIF + tiff(400, 30_000, ">"))), "EXIF entries"),
    "MPF": (in_jpeg(segment(0xE2, b"MPF\0" + BOMB)), "EXIF entries"),
    "PNG EXIF": (in_png(chunk(b"eXIf", BOMB)), "EXIF entries"),
    "late PNG EXIF": (behind_pixels(chunk(b"eXIf", BOMB)), "EXIF entries"),
    "raw profile": (in_png(raw_profile(EXIF + BOMB)), "EXIF entries"),
    "WEBP EXIF": (in_webp(BOMB), "EXIF entries"),
    "empty chunks": (in_png(chunk(b"abCd") * 1_000_000), "more than 40000 chunks"),
    "empty pixels": (in_png(chunk(b"IDAT") * 200_000), "more than 40000 chunks"),
    "late chunks": (behind_pixels(chunk(b"abCd") * 200_000), "more than 40000 chunks"),
    "profiles": (
        in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6))) * 5_000),
        "more than one colour profile",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_more_than_its_bytes_is_refused_at_once(name):
    """By pixels and by header alike, in a second: what is decoded is decoded under a lock."""
    data, why = COSTLY[name]
    for read in (load_image, image_size):
        start = time.process_time()
        with pytest.raises(RecordError) as caught:
            read(data, what="record 'r7'")
        assert time.process_time() - start < 1
        line = str(caught.value)
        assert line.startswith("record 'r7': the image would take too long to decode: it")
        assert why in line and "\n" not in line


def same_pixels(data: bytes, honest: bytes) -> bool:
    return np.array_equal(load_image(data, what="r"), load_image(honest, what="r"))


def test_honest_files_are_not_refused(monkeypatch):
    """As many scans as are allowed; thumbnails and films that hold markers of their own; restarts,
    a little fill, chunks of 512 bytes, EXIF of several parts, of any order, with a picture's turn.
    """
    assert load_image(scans(MAX_SCANS), what="r").size == NOISE.size
    markers = b"\xff\xda\0\2" * 1000
    own = [segment(0xE1, EXIF + markers), segment(0xE2, b"ICC_PROFILE\0\1\1" + markers)]
    assert same_pixels(in_jpeg(*own, b"\xff\xff\xff") + markers * 100, JPEG)
    stored = zlib.compress(raw_rows(), 0)
    parts = [chunk(b"IDAT", stored[i : i + 512]) for i in range(0, len(stored), 512)]
    assert same_pixels(PNG[:33] + b"".join(parts) + PNG[-12:], PNG)
    monkeypatch.setattr(image_cost, "MAX_PIECES", 20)
    restarts = encoded("JPEG", restart_marker_blocks=1)
    assert len(re.findall(rb"\xff[\xd0-\xd7]", restarts)) > 20 and same_pixels(restarts, JPEG)


def raw_rows() -> bytes:
    """The pixels as a PNG has them: each row behind a 0."""
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(NOISE))


@pytest.mark.parametrize("order", "<>")
def test_the_turn_is_found_in_every_place(order):
    """Beside entries of any size, as long as each has its bytes to itself."""
    exif = tiff(1, 30_000, order, orientation=6)
    halves = [segment(0xE1, EXIF + exif[:20_000]), segment(0xE1, EXIF + exif[20_000:])]
    for data in (
        in_jpeg(*halves),
        in_png(chunk(b"eXIf", exif)),
        in_png(raw_profile(EXIF + exif)),
        behind_pixels(raw_profile(EXIF + exif)),
        in_webp(exif),
    ):
        turned = load_image(data, what="r")
        assert turned.size == image_size(data, what="r") == NOISE.size[::-1]


@pytest.mark.parametrize("fill", [b"\xff", b"\xff\xd0", b"\xff\0"])
def test_looking_for_markers_takes_linear_time(fill):
    """20 MB of what is no marker, in the pixels, end in a moment."""
    scan = JPEG.index(b"\xff\xda") + 14
    data = JPEG[:scan] + fill * (20 * 10**6 // len(fill)) + b"\0"
    start = time.process_time()
    image_cost.check_file(data)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("seed", range(40))
def test_damage_never_raises_anything_but_a_reason(seed):
    """Cut off anywhere, or with bytes changed: the file is let through or refused in words."""
    rng = np.random.default_rng(seed)
    for whole in (JPEG, PNG, WEBP, in_jpeg(segment(0xE1, EXIF + BOMB)), in_webp(BOMB)):
        data = bytearray(whole[: rng.integers(1, len(whole))] if seed % 2 else whole)
        for at in rng.integers(0, min(len(data), 400), 8):
            data[at] = rng.choice([0, 1, 0xD8, 0xDA, 0xE1, 0xFF, rng.integers(256)])
        try:
            image_cost.check_file(bytes(data))
        except image_cost.TooCostly as error:
            assert str(error).startswith("it")
