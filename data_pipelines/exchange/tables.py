"""Rows into a file that other tools read: JSON lines, one JSON list, or Parquet with pictures."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from srpo_jax.data_pipelines.exchange.rows import import_pyarrow
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import written_whole

ENDINGS = {"jsonl": ".jsonl", "json": ".json", "parquet": ".parquet"}
PICTURES = ("images", "image")  # columns of names of pictures, which Parquet holds itself
ROWS = 256  # of a row group, so that its pictures fit into memory

WriteRow = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def table(folder: pathlib.Path, name: str, container: str) -> Iterator[tuple[str, WriteRow]]:
    """(the file's name, what writes a row). The file appears whole at the end.

    container: one of ENDINGS; "parquet" takes the pictures' bytes from `folder`. Errors: UserError
    for a container that is none, where pyarrow is missing, and for rows of different columns.
    """
    if container not in ENDINGS:
        raise UserError(f"--container={container}: must be one of {', '.join(ENDINGS)}")
    file = name + ENDINGS[container]
    writer = {"jsonl": _lines, "json": _list, "parquet": _parquet}[container]
    with written_whole(folder / file, flush=True) as fresh, writer(fresh, folder) as write:
        yield file, write


@contextlib.contextmanager
def _lines(path: pathlib.Path, folder: pathlib.Path) -> Iterator[WriteRow]:
    with open(path, "w", encoding="utf-8", newline="\n") as out:

        def write(row: dict[str, Any]) -> None:
            out.write(_json(row) + "\n")

        yield write


@contextlib.contextmanager
def _list(path: pathlib.Path, folder: pathlib.Path) -> Iterator[WriteRow]:
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        first = True

        def write(row: dict[str, Any]) -> None:
            nonlocal first
            out.write(("[\n" if first else ",\n") + _json(row))
            first = False

        yield write
        out.write("[]\n" if first else "\n]\n")


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


@contextlib.contextmanager
def _parquet(path: pathlib.Path, folder: pathlib.Path) -> Iterator[WriteRow]:
    table = _Table(path, folder)
    try:
        yield table.add
        table.flush()
    finally:
        table.close()


class _Table:
    """A Parquet file that is written a row group at a time. Its columns are those of the first."""

    def __init__(self, path: pathlib.Path, folder: pathlib.Path):
        self._arrow = import_pyarrow("to write Parquet")
        self._path, self._folder = path, folder
        self._rows: list[dict[str, Any]] = []
        self._schema = self._writer = None

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append({name: self._cell(name, row[name]) for name in row})
        if len(self._rows) == ROWS:
            self.flush()

    def flush(self) -> None:
        from pyarrow import parquet

        if not self._rows and self._writer is not None:
            return
        try:
            if self._schema is None:
                self._schema = self._find_schema()
            unknown = {name for row in self._rows for name in row} - set(self._schema.names)
            if unknown:
                raise UserError(
                    f"column {min(unknown)!r} is missing in the first {ROWS} rows, so Parquet "
                    "cannot be written: use --container=jsonl"
                )
            made = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
        except self._arrow.ArrowException as error:
            raise UserError(
                f"the rows have columns of different kinds ({one_line(error, 120)}), so Parquet "
                "cannot be written: use --container=jsonl"
            ) from None
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._path, self._schema)
        self._writer.write_table(made)
        self._rows = []

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _cell(self, name: str, value: Any) -> Any:
        if name not in PICTURES or not value:
            return value
        one = [
            {"bytes": (self._folder / each).read_bytes(), "path": pathlib.PurePath(each).name}
            for each in (value if isinstance(value, list) else [value])
        ]
        return one if isinstance(value, list) else one[0]

    def _find_schema(self) -> Any:
        """That of the rows so far, with texts where all is null, and what datasets calls it."""
        arrow = self._arrow
        found = arrow.Table.from_pylist(self._rows).schema
        picture = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        made, features = [], {}
        for column in found:
            kind = _without_null(arrow, column.type)
            if column.name in PICTURES:
                kind = picture if arrow.types.is_struct(column.type) else arrow.list_(picture)
            made.append(arrow.field(column.name, kind))
            features[column.name] = _feature(arrow, kind, picture)
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        return arrow.schema(made, metadata=about)


def _without_null(arrow: Any, kind: Any) -> Any:
    if arrow.types.is_null(kind):
        return arrow.string()
    if arrow.types.is_list(kind):
        return arrow.list_(_without_null(arrow, kind.value_type))
    if arrow.types.is_struct(kind):
        return arrow.struct([(f.name, _without_null(arrow, f.type)) for f in kind])
    return kind


def _feature(arrow: Any, kind: Any, picture: Any) -> Any:
    """The type as Hugging Face's datasets writes it into a file."""
    if kind == picture:
        return {"_type": "Image"}
    if arrow.types.is_list(kind):
        return [_feature(arrow, kind.value_type, picture)]
    if arrow.types.is_struct(kind):
        return {f.name: _feature(arrow, f.type, picture) for f in kind}
    names = {"double": "float64"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}
