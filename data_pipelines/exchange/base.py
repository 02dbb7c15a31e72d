"""What a foreign format is: it reads rows into items, and writes items as rows."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from srpo_jax.data_pipelines.exchange.item import Answer, Item, pairs_of
from srpo_jax.data_pipelines.exchange.rows import Row, files_of, read_rows
from srpo_jax.errors import UserError


class Opened(NamedTuple):
    """rows: of all files. root: the folder that names of pictures begin in. files: those read."""

    rows: Iterable[Row]
    root: pathlib.Path
    files: tuple[pathlib.Path, ...]


class Pair(NamedTuple):
    """Two answers to one question, whole: `prefix` stands before both."""

    id: str
    item: Item
    prefix: tuple[str, ...]
    chosen: Answer
    rejected: Answer

    @property
    def chosen_text(self) -> str:
        """The whole assistant's turn of the safe answer."""
        return "".join(self.prefix) + self.chosen.text

    @property
    def rejected_text(self) -> str:
        """The whole assistant's turn of the unsafe answer."""
        return "".join(self.prefix) + self.rejected.text


class Format(abc.ABC):
    """One way in which others write their data. A subclass says `name`, `title`, `item`, and
    `matches` and `rows` if it can be told by its first row, and written.

    title: what it is, in a few words. reads: the fields that `item` looks at; all others are kept
    in meta.source_fields. license: of the data set, where a format is that of one. source: what
    stands in `source` of records; default the name. groups: rows that follow each other can be
    answers to one question (`group`, `merge`). writes: whether `rows` is there. container: what is
    written when nothing is said, "jsonl", "json" or "parquet". file: the name of that file, without
    ending.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    license: ClassVar[str] = ""
    source: ClassVar[str] = ""
    writes: ClassVar[bool] = True
    container: ClassVar[str] = "jsonl"
    file: ClassVar[str] = "train"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a file whose first row is this one is of this format."""
        return False

    @classmethod
    def knows_path(cls, path: pathlib.Path) -> bool:
        """Whether a path is of this format by its name, whatever its rows are."""
        return False

    def open(self, path: pathlib.Path, part: str = "") -> Opened:
        """The rows that a path stands for. part: which of several data sets in it, by name."""
        if part:
            raise UserError(f"--part={part}: {self.name} has no parts with names")
        files = files_of(path)
        root = path if path.is_dir() else path.parent
        return Opened((row for file in files for row in read_rows(file)), root, tuple(files))

    @abc.abstractmethod
    def item(self, row: Mapping[str, Any]) -> Item | list[Item]:
        """The item of a row, or its items. An id may be "": then the number of the row is taken.
        ValueError, with a short reason, for a row that is not of this format.
        """

    def group(self, row: Mapping[str, Any]) -> Hashable:
        """What rows that follow each other share if they belong together; None: nothing."""
        return None

    def merge(self, items: Sequence[Item]) -> list[Item]:
        """The items of rows that belong together, made of theirs."""
        return list(items)

    def rows(self, item: Item) -> Iterator[dict[str, Any]]:
        """The rows of an item that has names of files as its images: one a pair, if not said
        otherwise. An item of which nothing can be written has none.
        """
        for each in whole_pairs(item):
            yield self.row(each)

    def row(self, pair: Pair) -> dict[str, Any]:
        """The row of a pair."""
        raise NotImplementedError

    def finish(self, folder: pathlib.Path, file: str, count: int) -> None:  # noqa: B027
        """Writes what belongs beside the rows. file: their file's name. count: of rows."""


def whole_pairs(item: Item) -> Iterator[Pair]:
    """Every pair of an item, with ids of their own where there are several."""
    found = list(pairs_of(item))
    for number, (chosen, rejected) in enumerate(found):
        name = item.id if len(found) == 1 else f"{item.id}#{number}"
        yield Pair(name, item, item.reference[: chosen.at], chosen, rejected)


def facts(item: Item) -> dict[str, Any]:
    """The fields besides texts that other tools have no word for, as plain texts: category,
    source, license; those that are empty are left out.
    """
    named = {"category": item.category or "", "source": item.source, "license": item.license}
    return {name: value for name, value in named.items() if value}


def marked(question: str, images: int, mark: str = "<image>", gap: str = "\n") -> str:
    """The question with a mark for every picture: those that stand in it, else at its head."""
    if not images or mark in question:
        return question
    return mark * images + gap + question


def own_fields(item: Item, name: str) -> dict[str, Any]:
    """The fields that the item's row had and nothing read, if it came from the format `name`."""
    if item.meta.get("format") != name:
        return {}
    return dict(item.meta.get("source_fields", {}))
