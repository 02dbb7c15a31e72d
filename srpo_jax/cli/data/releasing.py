"""`srpo data release`: a folder that can be passed on, of records or of a workdir with judged
trees.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax import __version__
from srpo_jax.console import say
from srpo_jax.data_pipelines.construct.release import (
    ABOUT,
    BRANCHES,
    LICENSES,
    RECORDS,
    branch_rows,
    canary,
    license_rows,
    refuse,
    released,
)
from srpo_jax.data_pipelines.construct.review.applying import write_rows
from srpo_jax.data_pipelines.exchange.card import release_card
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.tree_schema import record_of
from srpo_jax.data_pipelines.tree_store import read_shards, shards_of
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set, set_names
from srpo_jax.errors import UserError
from srpo_jax.files import check_writable, write_json, write_text


class Found(NamedTuple):
    """A question with what is known of it: whether its reference path is safe, by the judge where
    there is one; the bytes or name of its pictures; its branches.
    """

    record: Record
    safe: bool
    cells: Sequence[bytes | str]
    branches: list[dict[str, Any]]


def data_release(options: Mapping[str, Any]) -> None:
    """Runs the verb with its options. Errors: UserError, before anything is written."""
    for name, said in (("in", "IN"), ("out", "OUT")):
        if not options[name]:
            raise UserError(f"{said} is missing, as in: srpo data release runs/ssui/reviewed out")
    place, out = pathlib.Path(options["in"]), pathlib.Path(options["out"])
    if not place.is_dir():
        raise UserError(f"IN={place}: no such folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name a new folder")
    harmful = options["include_harmful"]
    allowed = [name.strip() for name in options["allow"].split(",") if name.strip()]
    found = list(_found(place, options["verdicts"], harmful))
    records = [each.record for each in found]
    refuse(records, allowed)
    mark = canary(records)
    check_writable(out)
    store = PictureStore(out, pathlib.Path(records[0].root))
    rows, branches = [], []
    for each in found:
        images = tuple(store.keep(cell) for cell in each.cells)
        record = dataclasses.replace(each.record, images=images, root=str(out))
        rows.append(released(record, mark, safe=each.safe, include_harmful=harmful))
        branches += each.branches
    about = {
        "canary": mark,
        "include_harmful": harmful,
        "created_by": f"srpo_jax {__version__}",
        "records": len(rows),
        "branches": len(branches),
        "verdicts": dict(sorted(Counter(row["reply_verdict"] for row in branches).items())),
        "unsafe_replies": sum(record.unsafe_reply is not None for record in records),
        "licenses": dict(sorted(Counter(r.license or "" for r in records).items())),
        "allowed": allowed,
    }
    write_json(out / ABOUT, about)  # first: with it nobody takes the folder for a run
    write_rows(out / LICENSES, license_rows(records, mark))
    if branches:
        write_rows(out / BRANCHES, [{**row, "canary": mark} for row in branches])
    write_text(out / "README.md", release_card(place, out.resolve().name, about))
    write_rows(out / RECORDS, rows)
    read_records(out / RECORDS)  # what is passed on can be read
    said = "with harmful texts" if harmful else "without unsafe replies and texts of branches"
    say(f"wrote {len(rows)} records and {len(branches)} branches to {out}, {said}")


def _found(place: pathlib.Path, verdicts: str, harmful: bool) -> Iterator[Found]:
    trees = place / "trees"
    if shards_of(trees) and set_names(trees):
        names = set_names(trees)
        if (verdicts and verdicts not in names) or (not verdicts and len(names) > 1):
            raise UserError(f"{trees}: choose with --verdicts=NAME, one of {', '.join(names)}")
        for tree in JudgedTrees(read_shards(trees), find_set(trees, verdicts)):
            yield _of_tree(tree, str(place), harmful)
        return
    if verdicts:
        raise UserError(f"--verdicts={verdicts}: there are no judged trees in {place}")
    if not (place / RECORDS).is_file():
        raise UserError(f"{place}: there are no judged trees and no {RECORDS}")
    for record in read_records(place / RECORDS):
        yield Found(record, True, record.images, [])


def _of_tree(tree: Mapping[str, Any], root: str, harmful: bool) -> Found:
    record = dataclasses.replace(record_of(tree), root=root)
    verdict = tree["reference_verdict"]
    # Many judges judge no paths: of those ERROR says nothing.
    unsafe = "UNSAFE" in (verdict["path_verdict"], *verdict["step_verdicts"])
    safe = verdict["reply_verdict"] == "SAFE" and not unsafe
    cells = [image["data"] for image in tree["images"]]
    return Found(record, safe, cells, branch_rows(tree, include_harmful=harmful))
