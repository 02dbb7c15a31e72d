"""Items into a file of another tool, with the pictures beside it or in it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item
from srpo_jax.data_pipelines.exchange.pictures import FOLDER as PICTURES
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.exchange.tables import table
from srpo_jax.data_pipelines.records import IMAGE_MARKER
from srpo_jax.errors import UserError, one_line


@dataclasses.dataclass
class Written:
    """Counts of an export. empty: items of which nothing could be written, as they have no pair."""

    file: str = ""
    items: int = 0
    rows: int = 0
    empty: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)


def export_items(
    form: Format,
    items: Iterable[Item],
    root: pathlib.Path,
    out: pathlib.Path,
    *,
    container: str = "",
    limit: int = 0,
    allow_bad: int = 0,
) -> Written:
    """Writes the folder `out`. root: where names of the items' pictures begin.

    Errors: UserError when more than allow_bad items cannot be written in this format, when nothing
    is, or when there is something of that name in `out`.
    """
    if not form.writes:
        raise UserError(f"{form.name} is read, not written: it is data of others, and no tool's")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and not empty: name a new folder")
    try:
        return _export(form, items, PictureStore(out, root), container, limit, allow_bad)
    except BaseException:
        shutil.rmtree(out / PICTURES, ignore_errors=True)
        raise


def _export(
    form: Format,
    items: Iterable[Item],
    store: PictureStore,
    container: str,
    limit: int,
    allow_bad: int,
) -> Written:
    out, found = store.folder, Written()
    with table(out, form.file, container or form.container) as (found.file, write):
        for item in items:
            if limit and found.items == limit:
                break
            found.items += 1
            try:
                rows = list(form.rows(_kept(item, store)))
            except ValueError as error:
                found.bad.append(f"{item.id}: {one_line(error, 200)}")
                continue
            found.empty += not rows
            for row in rows:
                write(row)
            found.rows += len(rows)
        if len(found.bad) > allow_bad or not found.rows:
            why = found.bad[0] if found.bad else "no question has what this format holds"
            raise UserError(
                f"{form.name}: {why} ({len(found.bad)} of {found.items} questions cannot be "
                "written; --allow_bad=N leaves up to N out)"
            )
    if found.file.endswith(".parquet"):  # which holds them itself
        shutil.rmtree(out / PICTURES, ignore_errors=True)
    form.finish(out, found.file, found.rows)
    return found


def _kept(item: Item, store: PictureStore) -> Item:
    """The item with its pictures in the folder of the export."""
    texts: list[Any] = [*item.reference, *(answer.text for answer in item.answers)]
    if any(IMAGE_MARKER in text for text in texts):
        raise ValueError(f"an answer says {IMAGE_MARKER}, which other tools take for a picture")
    return dataclasses.replace(item, images=tuple(store.keep(cell) for cell in item.images))
