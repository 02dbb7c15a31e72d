"""Pictures of foreign rows, kept by their contents: FOLDER/images/SHA256.png.

A name is the sum of the contents, so equal pictures are one file and no name of a stranger becomes
a path. A picture is looked at (format, size and cost of decoding, by its header) before it is kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange.item import Cell
from srpo_jax.data_pipelines.images import MAX_BYTES, image_size, read_image_bytes
from srpo_jax.data_pipelines.records import RecordError, resolve_inside
from srpo_jax.errors import one_line
from srpo_jax.files import written_whole

FOLDER = "images"
ENDINGS = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
REMEMBERED = 1 << 20  # file names whose contents are known
MAX_NAME = 1000  # characters of them
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")


class PictureStore:
    """Keeps pictures below `folder`; of a dry run nothing is written.

    root: where the names of picture files begin. new, known: how many were kept, and how many were
    there already.
    """

    def __init__(self, folder: pathlib.Path, root: pathlib.Path, *, dry_run: bool = False):
        self.folder, self.root, self.dry_run = folder, root, dry_run
        self.new = self.known = 0
        self._names: dict[str, str] = {}  # by file name
        self._kept: set[str] = set()

    def keep(self, cell: Cell) -> str:
        """The name, relative to the folder, of the picture in a cell: a file name, bytes, a data
        URI, or Hugging Face's {"bytes", "path"}. ValueError for what is no picture that we keep.
        """
        if isinstance(cell, str) and cell in self._names:
            self.known += 1
            return self._names[cell]
        name = self._keep_bytes(self.bytes_of(cell))
        if isinstance(cell, str) and len(cell) < MAX_NAME and len(self._names) < REMEMBERED:
            self._names[cell] = name
        return name

    def bytes_of(self, cell: Cell) -> bytes:
        """The bytes of the picture in a cell, whatever they are. ValueError as `keep`."""
        if isinstance(cell, Mapping):
            cell = _of_mapping(cell)
        if isinstance(cell, str):
            return _of_uri(cell) if cell.startswith("data:") else self._read(cell)
        return bytes(cell)

    def _read(self, name: str) -> bytes:
        if not name.strip():
            raise ValueError("a picture has no name")
        if "://" not in name and os.path.isabs(name):
            inside = os.path.relpath(os.path.realpath(name), self.root.resolve())
            if inside.startswith(".."):
                raise ValueError(
                    f"picture {name!r} is outside {self.root}: name the folder of the pictures "
                    "with --images"
                )
            name = inside
        path = resolve_inside(self.root, name)
        return _without_what(lambda: read_image_bytes(path, what=""))

    def _keep_bytes(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if digest in self._kept:
            self.known += 1
            return self._name(digest, data)
        _without_what(lambda: image_size(data, what=""))
        name = self._name(digest, data)
        self.new += 1
        self._kept.add(digest)
        if not self.dry_run and not (self.folder / name).is_file():
            with written_whole(self.folder / name) as fresh:
                fresh.write_bytes(data)
        return name

    @staticmethod
    def _name(digest: str, data: bytes) -> str:
        ending = next((end for start, end in ENDINGS.items() if data.startswith(start)), "")
        return f"{FOLDER}/{digest}{ending}"


def _of_mapping(cell: Mapping[str, Any]) -> str | bytes:
    """Bytes win over a path, which is only a name beside them."""
    if isinstance(cell.get("bytes"), (bytes, bytearray)):
        return bytes(cell["bytes"])
    if isinstance(cell.get("path"), str):
        return cell["path"]
    raise ValueError("a picture has neither bytes nor a path")


def _of_uri(uri: str) -> bytes:
    head = _DATA.match(uri)
    if head is None:
        raise ValueError(f"{uri[:40]!r} is no picture in base64")
    if (len(uri) - head.end()) * 3 // 4 > MAX_BYTES + 2:
        raise ValueError(f"a picture is larger than {MAX_BYTES} bytes")
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a picture's base64 is damaged") from None


def _without_what(call: Any) -> Any:
    """What `call` returns; its RecordError as a ValueError without the empty name in front."""
    try:
        return call()
    except RecordError as error:
        raise ValueError(one_line(error).removeprefix(": ")) from None
