"""Rows that came through all stages become records, and everything else a line that says why not.

OUT/records.jsonl   the records; behind each its harmless twin, if the stages make one
OUT/images/         their pictures, by their contents
OUT/rejects.jsonl   every other row, with the stage, the reason and what was answered
OUT/construct.json  which stages and models, and counts; written last
"""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.construct.guard import MINORS, about_minors
from srpo_jax.data_pipelines.construct.rows import Row
from srpo_jax.data_pipelines.construct.runner import Counts
from srpo_jax.data_pipelines.construct.stages import StageList, shown_name
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.records import (
    IMAGE_MARKER,
    Record,
    check_meta,
    record_to_dict,
    write_records,
)
from srpo_jax.errors import one_line
from srpo_jax.files import write_json, write_text

RECORDS, REJECTS, ABOUT = "records.jsonl", "rejects.jsonl", "construct.json"
VALIDATE = "validate"
META = "construct"  # the key of a record's meta
TWIN = "-benign"  # at the end of a twin's id


def finish(
    stages: StageList, rows: Sequence[Row], out: pathlib.Path
) -> tuple[list[Record], Counts]:
    """The records of the rows that are alive, with their pictures kept in `out`; a row of which
    none can be made is rejected. Errors: OSError.
    """
    store, found, counts = PictureStore(out, out), [], Counts(VALIDATE)
    for row in rows:
        if not row.alive:
            continue
        counts.rows += 1
        try:
            images = tuple(store.keep(data) for data in row.pictures())
            found += records_of(stages, row, images, str(out))
            counts.kept += 1
        except ValueError as error:
            row.reject(VALIDATE, one_line(error, 200))
            counts.rejected[row.why] += 1
    return found, counts


def records_of(stages: StageList, row: Row, images: tuple[str, ...], root: str) -> list[Record]:
    """The record of a row, and its twin. Errors: ValueError for what no record can be made of."""
    rules = stages.record
    about: dict[str, Any] = {"stages": stages.name, "digest": stages.digest, "kind": row.kind}
    about |= {shown_name(path): row.value(path) for path in rules.get("meta", ())}
    if verdicts := rules.get("verdicts"):
        about["verdicts"] = {name: row.value(path) for name, path in verdicts.items()}
    unsafe = row.value(rules["unsafe_reply"]) if "unsafe_reply" in rules else None
    reply = row.value(rules["reply"])
    if unsafe is not None and " ".join(unsafe.split()) == " ".join(reply.split()):
        raise ValueError("the safe and the unsafe reply say the same")
    first = Record(
        id=row.id,
        images=images,
        question=_question(row.value(rules["question"])),
        steps=_steps(stages, row.value(rules["steps"])),
        reply=reply,
        category=row.category,
        risky=rules.get("risky"),
        unsafe_reply=unsafe,
        source=row.source,
        license=row.license,
        meta={META: about},
        root=root,
    )
    made = [first]
    if twin := rules.get("twin"):
        made.append(
            Record(
                id=f"{row.id}{TWIN}",
                images=images,
                question=_question(row.value(twin["question"])),
                steps=_steps(stages, row.value(twin["steps"])),
                reply=row.value(twin["reply"]),
                category=row.category,
                risky=False,
                source=row.source,
                license=row.license,
                meta={META: {"stages": stages.name, "digest": stages.digest, "twin_of": row.id}},
                root=root,
            )
        )
    for record in made:
        _check(record)
    return made


def _question(text: str) -> str:
    if IMAGE_MARKER in text:
        raise ValueError(f"the question holds {IMAGE_MARKER}")
    return text


def _steps(stages: StageList, texts: Sequence[str]) -> tuple[str, ...]:
    """The steps as a record has them, under the headings of the list, if it has some."""
    if not stages.headings:
        return tuple(texts)
    if len(texts) != len(stages.headings):
        raise ValueError(f"{len(texts)} steps for {len(stages.headings)} headings")
    return tuple(f"{head}: {text}" for head, text in zip(stages.headings, texts))


def _check(record: Record) -> None:
    if about_minors(record_to_dict(record)):
        raise ValueError(MINORS)
    check_meta(record.meta)
    kinds = ["lines", "ssui"] if record.steps[0].startswith(SSUI[0]) else ["lines"]
    for kind in kinds:  # the format that the config begins with, and the one of these headings
        make_format(kind).check(record.steps, record.reply)


def write_out(
    out: pathlib.Path,
    stages: StageList,
    records: Sequence[Record],
    rows: Sequence[Row],
    counts: Sequence[Counts],
    about: Mapping[str, Any],
) -> None:
    """Writes records, rejects and, last, construct.json. about: what it says besides, as models."""
    write_records(records, out / RECORDS)
    lines = (json.dumps(_rejected(row), ensure_ascii=False) + "\n" for row in rows if row.why)
    write_text(out / REJECTS, "".join(lines), flush=True)
    write_json(
        out / ABOUT,
        {
            "stages": stages.name,
            "digest": stages.digest,
            **about,
            **counted(records),
            "counts": [
                {
                    "stage": each.stage,
                    "rows": each.rows,
                    "kept": each.kept,
                    "rejected": dict(sorted(each.rejected.items())),
                }
                for each in counts
            ],
        },
    )


def counted(records: Sequence[Record]) -> dict[str, Any]:
    """What construct.json says of the records that there are."""
    first = [record for record in records if "twin_of" not in record.meta.get(META, {})]
    return {
        "records": len(records),
        "twins": len(records) - len(first),
        "categories": dict(sorted(Counter(r.category or "none" for r in first).items())),
        "licenses": dict(sorted(Counter(record.license for record in records).items())),
        "sources": dict(sorted(Counter(record.source for record in records).items())),
    }


def _rejected(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "stage": row.stage,
        "why": row.why,
        "kind": row.kind,
        "category": row.category,
        "pictures": [path.name for path in row.files],
        "question": row.question,
        "answers": row.answers,
    }
