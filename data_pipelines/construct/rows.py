"""What a construction starts from: a row for each picture and kind, or for each question.

Kinds are dealt out in turn, picture after picture, so that no kind has more than one row more than
another, and no picture the same kind twice.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from srpo_jax.data_pipelines.construct.stages import StageList
from srpo_jax.data_pipelines.images import read_image_bytes
from srpo_jax.data_pipelines.records import read_records, resolve_inside
from srpo_jax.errors import UserError
from srpo_jax.files import rows_of

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
TOLD = "pictures.jsonl"  # in a folder of pictures: what is said of each
START = "start"  # the stage of what is rejected before anybody is asked
_TOLD_FIELDS = ("image", "license", "source")


@dataclass
class Row:
    """A record in the making. files: of its pictures. answers: {stage: {key: value}}. stage, why:
    where and why it was rejected; waiting: a model did not answer, so it is asked again later.
    """

    id: str
    files: tuple[pathlib.Path, ...]
    kind: str | None = None
    question: str | None = None
    category: str | None = None
    license: str = ""
    source: str = ""
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stage: str = ""
    why: str = ""
    waiting: str = ""

    @property
    def alive(self) -> bool:
        return not self.why and not self.waiting

    def reject(self, stage: str, why: str) -> None:
        """Takes it out, for this reason."""
        self.stage, self.why = stage, why

    def pictures(self) -> tuple[bytes, ...]:
        """The bytes of its picture files. Errors: RecordError."""
        return tuple(read_image_bytes(path, what=f"row {self.id!r}") for path in self.files)

    def value(self, path: str) -> Any:
        """An answer, by `stage.key`."""
        stage, _, key = path.partition(".")
        return self.answers[stage][key] if key else getattr(self, stage)


def rows_from(
    stages: StageList, place: pathlib.Path, *, per_image: int, license: str, source: str
) -> list[Row]:
    """The rows of a folder of pictures, or of a JSONL file of records (or a folder with one), as
    the list of stages says. license, source: of what does not say its own. Errors: UserError.
    """
    if stages.starts_from == "questions":
        return _of_questions(stages, place, license, source)
    if not 1 <= per_image <= len(stages.kinds):
        raise UserError(f"--per_image={per_image}: must be 1 to {len(stages.kinds)}")
    if not place.is_dir():
        raise UserError(f"IN={place}: {stages.name} starts from a folder of pictures")
    names = sorted(
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    )
    if not names:
        raise UserError(f"{place}: holds no picture ({', '.join(ENDINGS)})")
    told = _told(place, names)
    kinds, rows, ids = list(stages.kinds), [], set()
    for i, name in enumerate(names):
        said = told.get(name, {})
        for k in range(per_image):
            kind = kinds[(i * per_image + k) % len(kinds)]
            rows.append(
                Row(
                    id=_id(name, kind, ids),
                    files=(_inside(place, name),),
                    kind=kind,
                    category=stages.category(kind),
                    license=said.get("license") or license,
                    source=said.get("source") or source or place.resolve().name,
                )
            )
    return rows


def _inside(place: pathlib.Path, name: str) -> pathlib.Path:
    try:
        return resolve_inside(place, name)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def _id(name: str, kind: str, taken: set[str]) -> str:
    """Of a row: the picture's name and the kind, with a digest where two come to the same."""
    plain = re.sub(r"[^\w.-]+", "-", os.path.splitext(name)[0]).strip("-.") or "picture"
    found = f"{plain[:100]}-{kind}"
    if found in taken:
        found = f"{plain[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}-{kind}"
    taken.add(found)
    return found


def _told(place: pathlib.Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What pictures.jsonl says of each. Errors: UserError, also for one that is not there."""
    path = place / TOLD
    found: dict[str, dict[str, str]] = {}
    for where, row in rows_of(path) if path.is_file() else ():
        if set(row) - set(_TOLD_FIELDS) or not all(isinstance(v, str) for v in row.values()):
            raise UserError(f"{where}: has image, license and source, all texts")
        if row.get("image") not in names:
            raise UserError(f"{where}: there is no picture {row.get('image')!r} in {place}")
        found[row["image"]] = row
    return found


def _of_questions(stages: StageList, place: pathlib.Path, license: str, source: str) -> list[Row]:
    path = place / "records.jsonl" if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"IN={place}: {stages.name} starts from a JSONL file of records")
    return [
        Row(
            id=record.id,
            files=tuple(record.image_paths()),
            question=record.question,
            category=record.category,
            license=record.license or license,
            source=record.source or source,
        )
        for record in read_records(path)
    ]
