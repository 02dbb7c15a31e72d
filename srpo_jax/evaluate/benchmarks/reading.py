"""What the readers of benchmarks share: files found, rows made into records, all faults told.

Items of a benchmark that are left out would make another benchmark of it: so any row that cannot
be used, or a picture that is missing, is an error.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange.fields import plain
from srpo_jax.data_pipelines.exchange.item import Cell, question_text
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.exchange.rows import Row, files_of, read_rows
from srpo_jax.data_pipelines.records import Record, record_from_dict
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_json

NAMED = 3  # bad rows that are told
_REST = " "  # key of cells without a name


def find_file(data: pathlib.Path, *names: str) -> pathlib.Path:
    """The first of these that the folder has; `data` itself where it is a file. Errors: UserError
    that says what is looked for.
    """
    if data.is_file():
        return data
    for name in names:
        if (data / name).is_file():
            return data / name
    raise UserError(f"{data}: has no {' or '.join(names)}; docs/benchmarks.md says what it needs")


def rows_below(data: pathlib.Path, *names: str) -> list[Row]:
    """The rows of the first of these that the folder has, a file or a folder of files; without
    any, of the data files of the folder itself. Errors: UserError.
    """
    places = [data] if data.is_file() else [data / name for name in names if (data / name).exists()]
    return [row for file in files_of(places[0] if places else data) for row in read_rows(file)]


def csv_rows(path: pathlib.Path, header: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a CSV file of UTF-8 by the names in its first line; header: names, where it has
    none. Errors: UserError.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, fieldnames=header or None, restkey=_REST)
            for number, row in enumerate(rows, 1 if header else 2):
                extra = "more cells than names" if row.pop(_REST, None) and not header else ""
                yield Row(f"{path}: row {number}", dict(row), extra)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error, 160)}") from None


def table_rows(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a JSON object {id: row}; each gets its id as `id`. Errors: UserError."""
    for key, row in read_json(path).items():
        where = f"{path}: {key}"
        if isinstance(row, dict):
            yield Row(where, {**row, "id": key})
        else:
            yield Row(where, {}, "must be an object")


class Reader:
    """Makes records. root: the folder that names of pictures begin in. pictures: where those
    without a file are kept.
    """

    def __init__(self, root: pathlib.Path, pictures: pathlib.Path, license: str, source: str):
        self.root = root
        self._store = PictureStore(pictures, root)
        self._about = {"license": license, "source": source}

    def find(self, name: str, *folders: str) -> str:
        """The name of a picture below `root`: in the first of these folders that has it, else as it
        stands.
        """
        places = (f"{folder}/{name}" for folder in folders)
        return next((place for place in places if (self.root / place).is_file()), name)

    def record(
        self,
        name: str,
        question: str,
        cells: Sequence[Cell],
        *,
        reply: str = "",
        category: str | None = None,
        risky: bool | None = None,
        **meta: Any,
    ) -> Record:
        """The record of one item. cells: its pictures as the source has them. reply: a good one,
        for the judge. meta: what else judging and counting need; None is left out. Errors:
        ValueError with the reason.
        """
        by_name = all(isinstance(cell, str) and not cell.startswith("data:") for cell in cells)
        images = list(cells) if by_name else [self._store.keep(cell) for cell in cells]
        data = {
            "id": name,
            "question": question_text(question, len(images)),
            "images": images,
            "category": category,
            "risky": risky,
            "meta": plain({key: value for key, value in meta.items() if value is not None}),
            **self._about,
        }
        record = record_from_dict(data, str(self.root if by_name else self._store.folder))
        return dataclasses.replace(record, reply=reply.strip())


def collect(
    rows: Iterable[Row], make: Callable[[dict[str, Any]], Record | Sequence[Record]]
) -> list[Record]:
    """The records of all rows. make: of one row; ValueError for one that cannot be used. Errors:
    UserError that names the first of them, and says how many there are.
    """
    found: list[Record] = []
    bad: list[str] = []
    first: dict[str, str] = {}
    count = 0
    for row in rows:
        count += 1
        try:
            if row.error:
                raise ValueError(row.error)
            made = make(row.data)
            for record in [made] if isinstance(made, Record) else made:
                if record.id in first:
                    raise ValueError(f"id {record.id!r} is that of {first[record.id]}, too")
                first[record.id] = row.where
                found.append(record)
        except ValueError as error:
            bad.append(f"{row.where}: {one_line(error, 200)}")
    if bad:
        told = "; ".join(bad[:NAMED])
        raise UserError(f"{told} ({len(bad)} of {count} rows cannot be used)")
    if not found:
        raise UserError("the data of the benchmark holds no item")
    return found
