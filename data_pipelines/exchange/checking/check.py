"""A data set on one page: tables that a terminal and a page show alike."""

from __future__ import annotations

import hashlib
import pathlib
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srpo_jax.data_pipelines.exchange.checking.near import (
    NEAR_BITS,
    NEAR_TEXT,
    PictureIndex,
    TextIndex,
    picture_hash,
    quantiles,
)
from srpo_jax.data_pipelines.exchange.item import Item, normal, pairs_of
from srpo_jax.data_pipelines.exchange.licenses import told
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.errors import one_line

SHOWN = 10  # examples of each kind
COLUMNS = 118
Count = Callable[[str], int]


@dataclass
class Table:
    """title, what it means, names of columns, and rows; an empty table is left out."""

    title: str
    lead: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]] = ()


@dataclass
class Seen:
    """A data set as it is passed through, once."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sums: list[tuple[str, ...]] = field(default_factory=list)  # of the pictures of each question
    hashes: dict[str, int] = field(default_factory=dict)  # of a picture, by its sum
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    broken: list[tuple[str, str]] = field(default_factory=list)  # (id, why) of pictures


class Pictures:
    """Looks at every picture once; keeps its sum, its size and what it looks like."""

    def __init__(self, root: pathlib.Path, seen: Seen):
        self._store, self._seen = PictureStore(root, root, dry_run=True), seen

    def sums(self, item: Item) -> tuple[str, ...]:
        """The sums of an item's pictures; a broken one is noted and has none."""
        found = []
        for cell in item.images:
            try:
                data = self._store.bytes_of(cell)
                digest = hashlib.sha256(data).hexdigest()
                if digest not in self._seen.sizes:
                    image = load_image(data, what="")
                    self._seen.sizes[digest] = image.size
                    self._seen.hashes[digest] = picture_hash(image)
                found.append(digest)
            except (ValueError, RecordError) as error:
                self._seen.broken.append((item.id, one_line(error, 160).removeprefix(": ")))
        return tuple(found)


def check_items(
    items: Iterable[Item],
    root: pathlib.Path,
    *,
    count: Count,
    unit: str,
    against: Mapping[str, tuple[Iterable[Item], pathlib.Path]] | None = None,
) -> list[Table]:
    """The tables of a data set. root: where names of its pictures begin. count: how long a text is,
    in `unit` ("tokens", "words"). against: sets that it should have nothing in common with, by
    name.
    """
    seen = Seen()
    look = Pictures(root, seen)
    kinds: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    licenses: Counter[str] = Counter()
    lengths: dict[str, list[int]] = {"question": [], "reference path": [], "answer": []}
    for item in items:
        risk = {True: "risky", False: "harmless", None: "not said"}[item.risky]
        kinds[item.category or "none", risk] += 1
        licenses[item.license] += 1
        totals["questions"] += 1
        totals["answers"] += len(item.answers)
        totals["pairs of a safe and an unsafe answer"] += len(list(pairs_of(item)))
        totals["with a reference path"] += bool(item.reference)
        lengths["question"].append(count(item.question))
        if item.reference:
            lengths["reference path"].append(count("".join(item.reference)))
        lengths["answer"] += [count(answer.text) for answer in item.answers]
        seen.ids.append(item.id)
        seen.texts.append(item.question)
        seen.sums.append(look.sums(item))
    tables = [
        Table("What is in it", "", ("", "number"), list(totals.items())),
        _kinds(kinds),
        _lengths(lengths, unit),
        *_pictures(seen),
        *_duplicates(seen),
    ]
    for name, (others, place) in (against or {}).items():
        tables.append(_leaks(seen, name, others, place))
    rows = [(told(name), n) for name, n in licenses.most_common()]
    tables.append(Table("Licences", "", ("licence", "questions"), rows))
    return [table for table in tables if table.rows]


def _kinds(kinds: Mapping[tuple[str, str], int]) -> Table:
    risks = [r for r in ("risky", "harmless", "not said") if any(k[1] == r for k in kinds)]
    rows = [
        (name, *(kinds.get((name, risk), 0) for risk in risks))
        for name in sorted({name for name, _ in kinds})
    ]
    return Table("Categories", "", ("category", *risks), rows)


def _lengths(lengths: Mapping[str, Sequence[int]], unit: str) -> Table:
    rows = [
        (name, *(f"{value:.0f}" for value in quantiles(found)))
        for name, found in lengths.items()
        if found
    ]
    return Table(f"Lengths in {unit}", "", ("", "shortest", "median", "95 %", "longest"), rows)


def _pictures(seen: Seen) -> list[Table]:
    shown = Counter(digest for sums in seen.sums for digest in sums)
    sides = [(w, h) for w, h in seen.sizes.values()]
    rows: list[Sequence[Any]] = []
    if sides:
        rows += [("different pictures", len(sides)), ("shown", shown.total())]
        for name, values in (
            ("width", [w for w, _ in sides]),
            ("height", [h for _, h in sides]),
            ("megapixels", [w * h / 1e6 for w, h in sides]),
        ):
            low, middle, _, top = quantiles(values)
            rows.append((name, f"{low:g} to {top:g}, median {middle:g}"))
    without = sum(not sums for sums in seen.sums)
    rows += [("questions without a picture", without)] if without else []
    broken = Table(f"Pictures that cannot be used: {len(seen.broken)}", "", ("question", "why"), [])
    broken.rows = list(seen.broken[:SHOWN])
    return [Table("Pictures", "", ("", ""), rows), broken]


def _duplicates(seen: Seen) -> list[Table]:
    """Exact and near ones of texts, of pictures, and of both."""
    exact: list[Sequence[Any]] = []
    near: list[Sequence[Any]] = []
    asked: dict[tuple[str, tuple[str, ...]], int] = {}
    texts: dict[str, int] = {}
    index = TextIndex()
    same_text = 0
    for number, (text, sums) in enumerate(zip(seen.texts, seen.sums)):
        key = normal(text).casefold()
        first = asked.setdefault((key, sums), number)
        if first != number:
            exact.append((seen.ids[first], seen.ids[number], text))
        if texts.setdefault(key, number) != number:
            same_text += 1
            continue
        other = index.near(text)
        if other is not None:
            near.append((seen.ids[other], seen.ids[number], text))
        index.add(number, text)
    alike = _near_pictures(seen)
    rows = [
        ("the same question and pictures", len(exact)),
        ("the same text", same_text),
        (f"nearly the same text (similarity from {NEAR_TEXT})", len(near)),
        (f"nearly the same picture (at most {NEAR_BITS} of 64 bits)", len(alike)),
    ]
    head = ("first", "again", "text")
    return [
        Table("Duplicates", "Each is counted against the first of its kind.", ("", "number"), rows),
        Table("The same question again", "", head, exact[:SHOWN]),
        Table("Nearly the same text", "", head, near[:SHOWN]),
        Table("Nearly the same picture", "", ("shown by", "and by"), alike[:SHOWN]),
    ]


def _near_pictures(seen: Seen) -> list[Sequence[Any]]:
    index, found = PictureIndex(), []
    shown_by: dict[str, str] = {}
    for name, sums in zip(seen.ids, seen.sums):
        for digest in sums:
            shown_by.setdefault(digest, name)
    digests = list(seen.hashes)
    for number, digest in enumerate(digests):
        other = index.near(seen.hashes[digest])
        if other is not None:
            found.append((shown_by.get(digests[other], ""), shown_by.get(digest, "")))
        index.add(number, seen.hashes[digest])
    return found


def _leaks(seen: Seen, name: str, others: Iterable[Item], root: pathlib.Path) -> Table:
    """What the set has in common with another one, by its name."""
    theirs = Seen()
    look = Pictures(root, theirs)
    texts: dict[str, str] = {}
    index, pictures = TextIndex(), PictureIndex()
    names: list[str] = []
    sums: dict[str, str] = {}
    for item in others:
        texts.setdefault(normal(item.question).casefold(), item.id)
        index.add(len(names), item.question)
        names.append(item.id)
        for digest in look.sums(item):
            sums.setdefault(digest, item.id)
    digests = list(theirs.hashes)
    for number, digest in enumerate(digests):
        pictures.add(number, theirs.hashes[digest])

    def text_of(text: str) -> str:
        exact = texts.get(normal(text).casefold())
        if exact:
            return exact
        near = index.near(text)
        return "" if near is None else names[near]

    def picture_of(mine: tuple[str, ...]) -> str:
        for digest in mine:
            if digest in sums:
                return sums[digest]
            near = pictures.near(seen.hashes[digest])
            if near is not None:
                return sums[digests[near]]
        return ""

    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for mine, text, own in zip(seen.ids, seen.texts, seen.sums):
        found = (text_of(text), picture_of(own))
        kind = {
            (True, True): "question and picture",
            (True, False): "question alone",
            (False, True): "picture alone",
        }.get((bool(found[0]), bool(found[1])))
        if kind:
            counts[kind] += 1
            first.setdefault(kind, f"{mine} is {found[0] or found[1]}")
    rows = [(kind, counts[kind], first[kind]) for kind in sorted(counts)]
    lead = "The same, or nearly: what is trained on must not be tested on."
    title = f"In common with {name}: {counts.total()} of {len(seen.ids)} questions"
    return Table(title, lead, ("what", "questions", "for example"), rows or [("nothing", 0, "")])


def as_text(tables: Sequence[Table]) -> str:
    """The tables for a terminal."""
    lines = []
    for table in tables:
        lines += ["", table.title, *textwrap.wrap(table.lead, COLUMNS)]
        cells = [[one_line(cell, 60) for cell in row] for row in (table.head, *table.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        for row in cells:
            if any(row):
                line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
                lines.append(f"  {line}".rstrip())
    return "\n".join(lines[1:])
