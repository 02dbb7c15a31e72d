"""Refuse an image file whose decoding costs far more than its bytes and pixels are worth.

A permitted file of 20 MiB can hold 200,000 scans of 64 million pixels each, millions of empty
chunks, or EXIF entries that all point at the same megabyte. So what a file is made of is counted
here, by its own lengths and in one pass, before a decoder sees it. What is no such file is let
through: the decoder says what is wrong with it.
"""

from __future__ import annotations

import re
import struct
from typing import Any

MAX_PIECES = 40_000  # segments or chunks; libpng's 8 KiB a chunk make 2,560 of 20 MiB
MAX_SCANS = 32  # encoders write about ten; each goes over all pixels

PNG = b"\x89PNG\r\n\x1a\n"
MAX_EXIF = 400  # segments of EXIF in a JPEG; 320 of 64 KiB are 20 MiB
# In a JPEG's coded pixels: what is no escaped byte, restart or fill begins a segment.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SOS, _EOI, _APP1, _APP2 = 0xDA, 0xD9, 0xE1, 0xE2
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"
# Bytes of a value of each TIFF type.
_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4))) | {16: 8, 17: 8, 18: 8}


class TooCostly(ValueError):
    """An image that takes far longer to decode than its size explains; says why."""


def check_file(data: bytes) -> None:
    """Looks at the whole file, JPEG or PNG (a WEBP's pieces cost nothing). Errors: TooCostly."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(PNG):
        _check_png(data)


def check_metadata(info: dict[Any, Any]) -> None:
    """Looks at the EXIF data that Pillow found (`image.info`). Errors: TooCostly; ValueError for a
    profile that is no hexadecimal text.
    """
    if isinstance(exif := info.get("exif"), bytes):
        _check_ifd(exif)
    if isinstance(profile := info.get("Raw profile type exif"), str):
        _check_ifd(bytes.fromhex("".join(profile.split("\n")[3:])))


def _check_jpeg(data: bytes) -> None:
    """By libjpeg's rules: what follows a scan is coded pixels up to the next marker, and nothing
    counts behind the end of the image.
    """
    at, pieces, scans = 2, 0, 0
    exif: list[bytes] = []
    while at < len(data):
        found = _MARKER.search(data, at)
        if found is None:
            return
        marker = found.group(1)[0]
        # Fill in front of a marker, or junk, is read byte by byte as long as no pixels have come.
        pieces += 1 + (0 if scans else found.start() - at)
        if pieces > MAX_PIECES:
            raise TooCostly(f"it has more than {MAX_PIECES} segments or bytes between them")
        at = found.end()
        if marker == _EOI:
            return
        if marker == 0x01 or at + 2 > len(data):  # a marker without a length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body, at = data[at + 2 : at + length], at + length
        scans += marker == _SOS
        if scans > MAX_SCANS:
            raise TooCostly(f"it has more than {MAX_SCANS} scans; save it again")
        if marker == _APP1 and body.startswith(_EXIF) and not scans:
            exif.append(body[len(_EXIF) :])
            if len(exif) > MAX_EXIF:  # Pillow joins them one by one
                raise TooCostly(f"it has more than {MAX_EXIF} segments of EXIF")
        elif marker == _APP2 and body.startswith(_MPF) and not scans:
            _check_ifd(body[len(_MPF) :])
        elif marker == _SOS and scans == 1:
            _check_ifd(b"".join(exif))


def _check_png(data: bytes) -> None:
    at, profiles = len(PNG), 0
    for _ in range(MAX_PIECES):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        at += length + 12
        profiles += kind == b"iCCP"
        if profiles > 1:  # each may be a thousand times as large as its chunk
            raise TooCostly("it has more than one colour profile")
    raise TooCostly(f"it has more than {MAX_PIECES} chunks")


def _check_ifd(data: bytes) -> None:
    """Of TIFF's first directory: entries that say they have more bytes in all than there are must
    overlap, and a reader copies each.
    """
    while data.startswith(_EXIF):
        data = data[len(_EXIF) :]
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    if at + 2 > len(data):
        return
    (count,) = struct.unpack_from(f"{order}H", data, at)
    count = min(count, (len(data) - at - 2) // 12)
    entries = struct.iter_unpack(f"{order}HHI4x", data[at + 2 : at + 2 + 12 * count])
    sizes = (number * _SIZES.get(kind, 0) for _, kind, number in entries)
    if sum(size for size in sizes if size > 4) > len(data):
        raise TooCostly("its EXIF entries say that they hold more than there is")
