"""Rows of a foreign file, one after the other: JSON lines, a JSON list, Parquet or Arrow.

No more than some megabytes of a file are in memory at once. Every row says where it stands, by line
or by row group, and what is no row is a RowError in its place, so that one bad line does not hide
the others.
"""

from __future__ import annotations

import codecs
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from srpo_jax.data_pipelines.records import parse_object
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import open_file

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
ARROW_ENDINGS = (".parquet", ".arrow", ".feather")
ENDINGS = (*JSON_ENDINGS, *ARROW_ENDINGS)
# What lies beside data and is none: written by us, by LLaMA-Factory, by Hugging Face's datasets.
BESIDE = ("import.json", "dataset_info.json", "dataset_infos.json", "state.json", "meta.json")
MAX_ROW = 64 * 2**20  # bytes of a row as JSON, pictures in base64 included
CHUNK = 1 << 20
BATCH = 64  # rows of a Parquet file in memory at once
_DECODER = json.JSONDecoder()


class Row(NamedTuple):
    """where: FILE:LINE, or FILE: row group G: row R. data: its fields; error: why there is none."""

    where: str
    data: dict[str, Any]
    error: str = ""


def files_of(path: str | os.PathLike) -> list[pathlib.Path]:
    """The data files that a path stands for: itself, or those of a folder, in name order.

    Errors: UserError when there is none, or a folder holds several kinds.
    """
    path = pathlib.Path(path)
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise UserError(f"{path}: a file of one of these is read: {', '.join(ENDINGS)}")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = sorted(
        p
        for p in path.iterdir()
        if p.suffix.lower() in ENDINGS and p.is_file() and p.name not in BESIDE
    )
    if not found and (path / "data").is_dir():  # as on the Hugging Face Hub
        return files_of(path / "data")
    if not found:
        raise UserError(f"{path}: holds no data file ({', '.join(ENDINGS)})")
    if len({p.suffix.lower() for p in found}) > 1:
        names = ", ".join(p.name for p in found[:6])
        raise UserError(f"{path}: holds several kinds of files ({names}); name one of them")
    return found


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """The rows of one file. Errors: UserError for a file that cannot be opened or read at all."""
    try:
        if path.suffix.lower() in ARROW_ENDINGS:
            yield from _arrow_rows(path)
            return
        with open_file(path) as file:
            start = file.read(CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            file.seek(0)
            yield from _list_rows(path, file) if start == b"[" else _line_rows(path, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _line_rows(path: pathlib.Path, file: BinaryIO) -> Iterator[Row]:
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > MAX_ROW:
            yield Row(where, {}, f"the row is longer than {MAX_ROW} bytes")
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            continue
        line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if line:
            yield _parsed(where, line)


def _parsed(where: str, line: bytes) -> Row:
    try:
        return Row(where, parse_object(line))
    except ValueError as error:
        return Row(where, {}, str(error))


def _list_rows(path: pathlib.Path, file: BinaryIO) -> Iterator[Row]:
    """The objects of a JSON list. A list that is broken ends with a row that says where."""
    rows = _ListReader(file)
    for line, data in rows:
        yield _parsed(f"{path}:{line}", data)
    if rows.error:
        yield Row(f"{path}:{rows.line}", {}, f"not JSON: {rows.error}")


class _ListReader:
    """Cuts a JSON list into the bytes of its objects: (line on which it begins, bytes) each.

    error: what is wrong with the list itself, once it is passed; line: where that is.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False
        self.line, self.error = 1, ""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        try:
            sign = self._next()  # the opening bracket: the file begins with it
            while sign != "]":
                self._at += 1
                if self._next() == "]" and sign == "[":
                    break
                yield self._object()
                sign = self._next()
                if sign not in (",", "]"):
                    raise ValueError(f"{sign!r} where a comma or the end of the list was to come")
            self._at += 1
            self._more(CHUNK)
            if self._text[self._at :].strip():
                raise ValueError("something stands behind the end of the list")
        except UnicodeDecodeError:
            self.error = "not UTF-8"
        except ValueError as error:
            self.error = str(error)

    def _more(self, count: int) -> None:
        """Reads on, and forgets what is passed."""
        data = self._file.read(count)
        self._ended = not data
        self._text = self._text[self._at :] + self._decode(data, not data)
        self._at = 0

    def _next(self) -> str:
        """The next sign that is no white space. ValueError at the end of the file."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in " \t\r\n":
                at += 1
            self.line += self._text.count("\n", self._at, at)
            self._at = at
            if at < len(self._text):
                return self._text[at]
            if self._ended:
                raise ValueError("the list has no end")
            self._more(CHUNK)

    def _object(self) -> tuple[int, bytes]:
        """What stands at this place, cut out."""
        count = CHUNK
        if len(self._text) - self._at < CHUNK and not self._ended:
            self._more(CHUNK)
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
                break
            except RecursionError:
                raise ValueError("nested too deeply") from None
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > MAX_ROW:
                    raise ValueError(error.msg) from None
                count *= 2
                self._more(count)
        line, data = self.line, self._text[self._at : end].encode()
        self.line += self._text.count("\n", self._at, end)
        self._at = end
        return line, data


def _arrow_rows(path: pathlib.Path) -> Iterator[Row]:
    pyarrow = import_pyarrow(f"to read {path.name}")
    try:
        for group, batch in _batches(path):
            for i, row in enumerate(batch.to_pylist()):
                where = f"{path}: row group {group[0]}: row {group[1] + i}"
                yield Row(where, row)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error, 200)}") from None


def _batches(path: pathlib.Path) -> Iterator[tuple[tuple[int, int], Any]]:
    """((row group or record batch, first row in it), some rows) of a file."""
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                first = 0
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    yield (group, first), batch
                    first += batch.num_rows
        return
    import pyarrow

    with pyarrow.OSFile(str(path), "rb") as file:
        start = file.read(6)
        file.seek(0)
        if start == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for group, batch in enumerate(batches):
            for first in range(0, batch.num_rows, BATCH):
                yield (group, first), batch.slice(first, BATCH)


def import_pyarrow(why: str) -> Any:
    """The module pyarrow. Errors: UserError, which says how to get it, where it is missing."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{why}, pyarrow is needed: pip install 'srpo_jax[data]'") from None
    return pyarrow
