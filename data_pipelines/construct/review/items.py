"""What a reviewer is shown: records, or answers that a judge has a verdict on, which is not shown.

    FOLDER/review.html, label.html   the page, of records or of judged answers
    FOLDER/review.json, label.json   which items are in it, and what each stands for

The order is that of digests of the keys, so it tells nothing of where an item comes from.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json

RECORDS, LABELS = "records", "labels"  # kinds of a review
STEMS = {RECORDS: "review", LABELS: "label"}
FIELDS = ("question", "steps", "reply", "unsafe_reply")  # of a record, that can be edited
T = TypeVar("T")


@dataclass(frozen=True)
class Review:
    """kind: RECORDS or LABELS. items: [{"key", "stratum", "weight", and what is shown}]. sampled:
    only some of what there is; `weight` says of how many each speaks. digest: of everything shown.
    """

    kind: str
    items: list[dict[str, Any]]
    sampled: bool = False

    @property
    def digest(self) -> str:
        """16 hex digits: a decision is about exactly these texts."""
        content = json.dumps([self.kind, self.items], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def write(self, folder: pathlib.Path) -> None:
        """Writes what `read` reads."""
        about = {"kind": self.kind, "digest": self.digest, "sampled": self.sampled}
        write_json(folder / f"{STEMS[self.kind]}.json", {**about, "items": self.items})

    @staticmethod
    def read(folder: pathlib.Path, kind: str) -> Review:
        """Errors: UserError where no page was made, or its items were changed since."""
        path = folder / f"{STEMS[kind]}.json"
        if not path.is_file():
            raise UserError(f"{path} is missing: make the page first, the same without --apply")
        about = read_json(path)
        items = about.get("items")
        if about.get("kind") != kind or not isinstance(items, list):
            raise UserError(f"{path} is no review of ours")
        found = Review(about["kind"], items, bool(about.get("sampled")))
        if found.digest != about.get("digest"):
            raise UserError(f"{path} was changed: make the page again")
        return found


def shuffled(values: Iterable[T], key: Any) -> list[T]:
    """In the order of digests of `key(value)`."""
    return sorted(values, key=lambda each: hashlib.sha256(json.dumps(key(each)).encode()).digest())


def sample(values: Sequence[T], count: int, stratum: Any) -> dict[int, float]:
    """{index: weight} of at most `count` of the values, as many of each stratum as there are, the
    rarest first; a weight is how many of its stratum an item speaks for. In one stratum the first
    ones are taken: shuffle before.
    """
    strata: dict[Hashable, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        strata[stratum(value)].append(i)
    found: dict[int, float] = {}
    rest = sorted(strata.values(), key=len)
    for i, there in enumerate(rest):
        drawn = there[: (count - len(found)) // (len(rest) - i)]
        found |= {index: len(there) / len(drawn) for index in drawn}
    return found


def review_of_records(records: Sequence[Record], count: int = 0) -> Review:
    """Of records; count: only so many, drawn by category and risk."""
    mixed = shuffled(records, lambda record: record.id)
    weights = sample(mixed, count, stratum) if count else dict.fromkeys(range(len(mixed)), 1.0)
    items = [
        {
            "key": mixed[i].id,
            "stratum": stratum(mixed[i]),
            "weight": weight,
            "images": list(mixed[i].images),
            "question": mixed[i].question,
            "steps": list(mixed[i].steps),
            "reply": mixed[i].reply,
            "unsafe_reply": mixed[i].unsafe_reply,
            "facts": facts(mixed[i]),
        }
        for i, weight in sorted(weights.items())
    ]
    return Review(RECORDS, items, sampled=len(items) < len(records))


def stratum(record: Record) -> str:
    """Category and risk."""
    return ", ".join([record.category or "no category", risk(record.risky)])


def risk(risky: bool | None) -> str:
    """In words."""
    return {True: "risky together", False: "harmless", None: "risk not said"}[risky]


def facts(record: Record) -> list[str]:
    """What a reviewer is told besides: nothing of how it was made."""
    return [(record.category or "").replace("_", " "), risk(record.risky)]


def review_of_labels(rows: Sequence[Mapping[str, Any]]) -> Review:
    """Of branches or answers, rows as `srpo judge sample` draws and shuffles them; their verdicts
    are not in it. Weights are worked out by `srpo judge calibrate`, from the verdicts.
    """
    names = ("id", "at", "k", "question", "images", "text", "sampled_by")
    items = [
        {
            "key": json.dumps([row["id"], row["at"], row["k"]], ensure_ascii=False),
            "stratum": "",
            "weight": 1.0,
            "facts": [],
            **{name: row[name] for name in names},
        }
        for row in rows
    ]
    return Review(LABELS, items, sampled=True)
