"""A foreign file into a folder of ours: texts of trees, records, pictures, and what was found.

    OUT/trees.jsonl    every item, as text (texts.py)
    OUT/records.jsonl  the same questions as records, to explore or to test on
    OUT/images/        the pictures, by their contents
    OUT/import.json    where it came from, and counts

A row that cannot be used is named with its place. More of them than are allowed stop the import,
before anything is written but pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.exchange import fields
from srpo_jax.data_pipelines.exchange.base import Format, Opened
from srpo_jax.data_pipelines.exchange.item import Item, check_item
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.exchange.rows import Row, read_rows
from srpo_jax.data_pipelines.exchange.texts import FILE, item_from_dict, item_to_dict
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.path_formats.statuses import OK
from srpo_jax.data_pipelines.records import CATEGORIES, Record, check_meta, record_to_dict
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import file_sha256, read_json, write_json, written_whole

RECORDS = "records.jsonl"
ABOUT = "import.json"
OURS = ("srpo", "records")  # formats whose ids and meta stay as they are
NAMED = 20  # bad rows that are named in full


@dataclasses.dataclass
class Found:
    """Counts of an import. bad: of the rows that cannot be used, the first NAMED in full."""

    rows: int = 0
    bad_rows: int = 0
    items: int = 0
    trees: int = 0  # items with a reference path
    pairs: int = 0
    answers: int = 0
    labelled: int = 0
    with_steps: int = 0  # records with a reference path
    pictures: int = 0
    pictures_again: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)
    unread: Counter[str] = dataclasses.field(default_factory=Counter)
    licenses: Counter[str] = dataclasses.field(default_factory=Counter)
    categories: Counter[str] = dataclasses.field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """As import.json has it."""
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """limit: rows to read, 0 for all. allow_bad: rows that may be unusable. license, source: of
    rows that do not say theirs. images: the folder that names of pictures begin in, where it is
    not the file's. dry_run: nothing is written.
    """

    limit: int = 0
    allow_bad: int = 0
    license: str = ""
    source: str = ""
    images: str = ""
    dry_run: bool = False


def import_file(
    form: Format,
    opened: Opened,
    out: pathlib.Path,
    settings: Settings,
    path_format: PathFormat,
) -> tuple[Found, dict[str, Any]]:
    """Reads all rows and writes the folder `out`. Returns the counts and what import.json says.

    path_format: by which a reply is read into steps, for records. Errors: UserError when more rows
    than settings.allow_bad are unusable, when none is left, or when `out` holds another import.
    """
    root = pathlib.Path(settings.images) if settings.images else opened.root
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures")
    about = _about(form, opened, settings)
    if not settings.dry_run:
        _refuse_another(out, about)
    with _begun(out, about) if not settings.dry_run else contextlib.nullcontext():
        found = _written(form, opened, out, settings, path_format, root)
    places = {root, *(path.parent for path in opened.files)}
    bad = [_without_places(each, places) for each in found.bad]
    about = {**about, "counts": {**found.as_dict(), "bad": bad}}
    if not settings.dry_run:
        write_json(out / ABOUT, about)
    return found, about


@contextlib.contextmanager
def _begun(out: pathlib.Path, about: dict[str, Any]) -> Iterator[None]:
    """Says in import.json whose folder this is, before anything else is there, so that an import
    that was killed can be started again; after an error that file is what it was.
    """
    path = out / ABOUT
    there = path.is_file()
    if not there:
        write_json(path, {**about, "counts": {}})
    try:
        yield
    except Exception:
        if not there:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds pictures
                out.rmdir()
        raise


def _written(
    form: Format,
    opened: Opened,
    out: pathlib.Path,
    settings: Settings,
    path_format: PathFormat,
    root: pathlib.Path,
) -> Found:
    """Reads all rows and writes them; the counts."""
    store = PictureStore(out, root, dry_run=settings.dry_run)
    found = Found()
    with contextlib.ExitStack() as stack:
        if settings.dry_run:
            lines = [lambda _: None] * 2
        else:
            lines = [stack.enter_context(_lines(out / name)) for name in (FILE, RECORDS)]
        rows = _limited(opened.rows, settings.limit)
        for item in items_of(form, rows, settings, found, store):
            record = as_record(item, path_format)
            _count(item, record, found)
            lines[0](item_to_dict(item))
            lines[1](record_to_dict(record))
        found.pictures, found.pictures_again = store.new, store.known
        _check(found, settings, opened)
    return found


def items_of(
    form: Format,
    rows: Iterable[Row],
    settings: Settings,
    found: Found,
    store: PictureStore | None = None,
) -> Iterator[Item]:
    """The items of all rows that can be used, checked, with ids of their own; the others are
    counted in `found`. store: keeps the pictures; without one they stay as the file has them.
    """
    ids: set[str] = set()
    waiting: list[Item] = []
    group = None
    for row in rows:
        found.rows += 1
        try:
            if row.error:
                raise ValueError(row.error)
            made = form.item(row.data)
            many = isinstance(made, list)
            items = [
                _placed(item, form, row, i + 1 if many else 0, store, settings, ids)
                for i, item in enumerate(made if isinstance(made, list) else [made])
            ]
        except ValueError as error:
            found.bad_rows += 1
            if len(found.bad) < NAMED:
                found.bad.append(f"{row.where}: {one_line(error, 300)}")
            continue
        for item in items:
            found.unread.update(list(item.meta.get("source_fields", {})))
        key = form.group(row.data)
        if waiting and (key is None or key != group):
            yield from _merged(form, waiting)
            waiting = []
        group = key
        waiting += items
        if key is None:
            yield from waiting
            waiting = []
    yield from _merged(form, waiting)


def _merged(form: Format, items: list[Item]) -> list[Item]:
    return form.merge(items) if len(items) > 1 else items


def _placed(
    item: Item,
    form: Format,
    row: Row,
    part: int,
    store: PictureStore | None,
    settings: Settings,
    ids: set[str],
) -> Item:
    """The item with an id that no other has, kept pictures, its source and its licence."""
    if form.name not in OURS:
        item = with_facts(item, row.data)
    check_item(item)
    source = item.source or settings.source or form.source or form.name
    name = (
        item.id or row.where.replace(": row group ", ":").replace(": row ", ":").rpartition("/")[2]
    )
    if not item.id and part:
        name += f".{part}"
    if form.name not in OURS:
        name = name if name.startswith(f"{source}-") else f"{source}-{name}"
    name = given = one_line(name, 200)
    number = 1
    while name in ids:
        number += 1
        name = f"{given}~{number}"
    ids.add(name)
    where = row.where.rpartition("/")[2]
    meta = (
        item.meta
        if form.name in OURS
        else {"format": form.name, "row": where, **fields.plain(item.meta)}
    )
    check_meta(meta)
    return dataclasses.replace(
        item,
        id=name,
        images=tuple(store.keep(cell) for cell in item.images) if store else item.images,
        source=source,
        license=item.license or settings.license or form.license,
        meta=meta,
    )


def with_facts(item: Item, row: Mapping[str, Any]) -> Item:
    """The item with the source and the licence that its row names, and its category if that is one
    of ours. These are no fields then that nothing reads.
    """
    told = {name: row.get(name) for name in ("source", "license", "category")}
    known = {k: v for k, v in told.items() if isinstance(v, str) and not getattr(item, k)}
    if known.get("category") not in CATEGORIES:
        if known.pop("category", None) == "":
            known["category"] = ""
    meta = dict(item.meta)
    rest = {k: v for k, v in meta.pop("source_fields", {}).items() if k not in known}
    if rest:
        meta["source_fields"] = rest
    known = {name: value for name, value in known.items() if value}
    return dataclasses.replace(item, meta=meta, **known)


def as_record(item: Item, path_format: PathFormat) -> Record:
    """The question as a record. It has a reference path if the item's has steps, or if path_format
    finds some in its reply, and if that format can write it.
    """
    steps: Sequence[str] = [piece.strip() for piece in item.reference[:-1]]
    reply = item.reference[-1].strip() if item.reference else ""
    if item.reference and not steps:
        read = path_format.parse(item.reference[0])
        if read.status == OK and read.reply is not None:
            steps, reply = read.steps, read.reply
    try:
        path_format.check(steps, reply)
    except ValueError:
        steps = ()
    unsafe = item.unsafe_reply or next(
        (a.text.strip() for a in item.answers if a.at == 0 and a.safe is False), None
    )
    return Record(
        item.id,
        tuple(str(name) for name in item.images),
        item.question,
        tuple(steps),
        reply if steps else "",
        category=item.category,
        risky=item.risky,
        unsafe_reply=unsafe,
        source=item.source,
        license=item.license,
        meta=item.meta,
    )


def _count(item: Item, record: Record, found: Found) -> None:
    found.items += 1
    found.trees += bool(item.reference)
    found.answers += len(item.answers)
    found.labelled += sum(answer.safe is not None for answer in item.answers)
    by_point: dict[int, list[bool | None]] = {}
    for answer in item.answers:
        by_point.setdefault(answer.at, []).append(answer.safe)
    found.pairs += sum(here.count(True) * here.count(False) for here in by_point.values())
    found.with_steps += record.has_reference
    found.licenses[item.license] += 1
    found.categories[item.category or ""] += 1


def _check(found: Found, settings: Settings, opened: Opened) -> None:
    """Errors: UserError when too much, or all, of the file cannot be used."""
    name = ", ".join(str(path) for path in opened.files[:3])
    if not found.rows:
        raise UserError(f"{name}: holds no row")
    if settings.dry_run:
        return
    if found.bad_rows > settings.allow_bad or not found.items:
        raise UserError(
            f"{found.bad[0]} ({found.bad_rows} of {found.rows} rows cannot be used; --dry_run "
            "names them, --allow_bad=N leaves up to N out)"
        )


def _about(form: Format, opened: Opened, settings: Settings) -> dict[str, Any]:
    """Where an import comes from: no path of this machine, but names and sums of the files."""
    sums = {path.name: file_sha256(path) for path in opened.files}
    digest = hashlib.sha256(json.dumps([form.name, sums], sort_keys=True).encode()).hexdigest()
    return {
        "format": form.name,
        "title": form.title,
        "files": sums,
        "digest": digest[:16],
        "limit": settings.limit,
        "source": settings.source or form.source or form.name,
        "license": settings.license or form.license,
    }


def _without_places(text: str, places: set[pathlib.Path]) -> str:
    """The text without names of folders of this machine."""
    names = {str(each) for place in places for each in (place, place.resolve())}
    for name in sorted(names - {"."}, key=len, reverse=True):
        text = text.replace(f"{name}/", "").replace(name, "its folder")
    return text


def _refuse_another(out: pathlib.Path, about: dict[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder")
    there = out / ABOUT
    if there.is_file():
        theirs = read_json(there)
        if theirs.get("digest") != about["digest"]:
            raise UserError(
                f"{out} holds another import (of {', '.join(theirs.get('files', {}))}): "
                "name another folder"
            )
    elif (out / FILE).exists() or (out / RECORDS).exists():
        raise UserError(f"{out} holds {FILE} or {RECORDS} of another origin: name another folder")


def _limited(rows: Iterable[Row], limit: int) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if limit and number == limit:
            return
        yield row


@contextlib.contextmanager
def _lines(path: pathlib.Path) -> Iterator[Any]:
    """Gives what writes an object as a line; the file appears when all are written."""
    with written_whole(path, flush=True) as fresh:
        with open(fresh, "w", encoding="utf-8", newline="\n") as file:
            dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
            yield lambda data: file.write(dumps(data) + "\n")


def read_items(path: pathlib.Path) -> Iterator[Item]:
    """The items of a trees.jsonl. Errors: UserError that names the line that is none."""
    for row in read_rows(path):
        try:
            if row.error:
                raise ValueError(row.error)
            item = item_from_dict(row.data)
            check_item(item)
        except ValueError as error:
            raise UserError(f"{row.where}: {error}") from None
        yield item
