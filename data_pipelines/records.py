"""The record format, one JSON object a line (JSONL) with image files beside it: read, check, write.

A record is a question (text and images), its reference path (steps, then a reply), if it has one,
and labels.
docs/data.md has the schema, an example and every message of this file. The nine categories and
the six-step path are SSUI's (arXiv 2508.08926, 2509.12060).
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from srpo_jax.errors import UserError
from srpo_jax.files import open_file, written_whole

CATEGORIES = (
    "dangerous_behavior",
    "violence",
    "pornography",
    "moral_violations",
    "illegal_crimes",
    "political_controversies",
    "discrimination_and_stereotypes",
    "offensive_religious_beliefs",
    "privacy_violations",
)
IMAGE_MARKER = "<image>"  # where an image stands in the question; without markers images go first

MAX_LINE = 10 * 2**20  # bytes of a record, without its pictures
MAX_IMAGES = 512  # of a record
MAX_DEPTH = 64  # of `meta`

_REQUIRED = ("id", "images", "question")
_OPTIONAL = ("category", "risky", "unsafe_reply", "source", "license", "meta")


class RecordError(UserError):
    """A record, image or tree shard that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Record:
    """One question. `images` are names relative to the folder `root`, inside it."""

    id: str
    images: tuple[str, ...]
    question: str
    steps: tuple[str, ...]
    reply: str
    category: str | None = None
    risky: bool | None = None
    unsafe_reply: str | None = None
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    root: str = "."

    @property
    def has_reference(self) -> bool:
        """Whether it has a reference path; exploring can also begin with paths of the policy."""
        return bool(self.steps)

    def image_paths(self) -> list[pathlib.Path]:
        """Absolute paths of the images. Raises RecordError for one outside `root` or missing."""
        try:
            return [resolve_inside(self.root, name) for name in self.images]
        except ValueError as e:
            raise RecordError(f"{self.root}: record {self.id!r}: {e}") from None


def resolve_inside(root: str | os.PathLike, name: str) -> pathlib.Path:
    """The file `name` under `root`, with links followed. ValueError when it leaves root.

    Blocks `..`, absolute names and symlinks that point out: a record may come from anywhere.
    """
    if "\x00" in name or "://" in name or os.path.isabs(name):
        raise ValueError(f"image {name!r} must be a relative file name, not a URL or absolute path")
    top = _resolved(root) if os.path.isabs(root) else pathlib.Path(root).resolve()
    try:
        folder, last = os.path.split(os.path.join(top, name))
        path = _resolved(folder) / last
        if path.is_symlink():
            path = path.resolve()
        found = path.is_file()
    except (OSError, RuntimeError):  # a loop of links, a name too long for the system
        path, found = top, False
    if not path.is_relative_to(top):
        raise ValueError(f"image {name!r} is outside {top}")
    if not found:
        raise ValueError(f"image {name!r} does not exist under {top}")
    return path


@functools.lru_cache(maxsize=1024)
def _resolved(folder: str | os.PathLike) -> pathlib.Path:
    """Of an absolute path. Kept: every part of one is looked at, and records share few folders."""
    return pathlib.Path(folder).resolve()


def iter_records(path: str | os.PathLike) -> Iterator[Record | RecordError]:
    """Yield, line by line, a Record or the RecordError that says what is wrong with the line.

    Blank lines are not records. Only the ids seen so far are kept in memory.
    """
    path = pathlib.Path(path)
    root = str(path.resolve().parent)
    first_line: dict[str, int] = {}
    try:
        file = open_file(path)
    except OSError as e:
        why = e.strerror or type(e).__name__
        raise RecordError(f"{path}: cannot open the records: {why}") from None
    with file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            where, rid = f"{path}:{number}", None
            try:
                if len(line) > MAX_LINE:
                    raise ValueError(f"the line is longer than {MAX_LINE} bytes")
                data = parse_object(line.strip())
                rid = data.get("id")
                record = record_from_dict(data, root)
                if record.id in first_line:
                    raise ValueError(f"duplicate id, first used on line {first_line[record.id]}")
                first_line[record.id] = number
                yield record
            except ValueError as e:
                name = f"record {rid!r}" if isinstance(rid, str) else "record"
                yield RecordError(f"{where}: {name}: {e}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, without the byte order mark that it may begin with; of one that is too
    long the first MAX_LINE + 1 bytes. No more than that is in memory at once.
    """
    first = True
    while line := file.readline(MAX_LINE + 1):
        end = line
        if first:  # some editors begin a file with a mark
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        while len(end) > MAX_LINE and not end.endswith(b"\n"):
            end = file.readline(MAX_LINE + 1)
        yield line


def read_records(path: str | os.PathLike, *, max_bad_fraction: float = 0.0) -> list[Record]:
    """All records of a JSONL file, in order.

    Bad records are counted. When their share is above `max_bad_fraction` (default: any bad one)
    the file is refused with the first one named; otherwise each is named on stderr and left out.
    Raises RecordError; also for a file without a record.
    """
    good: list[Record] = []
    bad: list[RecordError] = []
    for item in iter_records(path):
        if isinstance(item, RecordError):
            bad.append(item)
        else:
            good.append(item)
    total = len(good) + len(bad)
    if not total:
        raise RecordError(f"{path}: holds no record")
    if len(bad) > max_bad_fraction * total or not good:
        raise RecordError(f"{bad[0]} ({len(bad)} of {total} records are bad)")
    for error in bad:
        print(f"left out: {error}", file=sys.stderr)
    if bad:
        print(f"left out {len(bad)} of {total} records of {path}", file=sys.stderr)
    return good


def write_records(records: Iterable[Record], path: str | os.PathLike) -> None:
    """Write JSONL, whole or not at all.

    Images are not copied: their names must hold relative to the folder of `path`.
    """
    path = pathlib.Path(path)
    with written_whole(path, flush=True) as fresh:
        with open(fresh, "w", encoding="utf-8", newline="\n") as file:
            for record in records:
                line = json.dumps(record_to_dict(record), ensure_ascii=False, allow_nan=False)
                file.write(line + "\n")


def record_to_dict(record: Record) -> dict[str, Any]:
    """The JSON form of a record; optional fields that hold their default are left out."""
    data: dict[str, Any] = {
        "id": record.id,
        "images": list(record.images),
        "question": record.question,
    }
    if record.has_reference:
        data["reference"] = {"steps": list(record.steps), "reply": record.reply}
    for name in _OPTIONAL:
        value = getattr(record, name)
        if value not in (None, "", {}):
            data[name] = value
    return data


def record_from_dict(data: dict[str, Any], root: str) -> Record:
    """Check one decoded JSON object. ValueError with a short reason when it is no record."""
    fields = (*_REQUIRED, "reference", *_OPTIONAL)
    unknown = sorted(set(data) - set(fields))
    if unknown:
        known = ", ".join(fields)
        raise ValueError(f"unknown field {unknown[0]!r} (known: {known})")
    for name in _REQUIRED:
        if name not in data:
            raise ValueError(f"field {name!r} is missing")
    rid = _text(data["id"], "id")
    if not rid.isprintable():
        raise ValueError("id must be printable, on one line")
    question = _text(data["question"], "question")
    names = _list(data["images"], "images")
    if len(names) > MAX_IMAGES:
        raise ValueError(f"images has {len(names)} names, the limit is {MAX_IMAGES}")
    images = tuple(_text(name, f"images[{i}]") for i, name in enumerate(names))
    markers = question.count(IMAGE_MARKER)
    if markers not in (0, len(images)):
        raise ValueError(f"question has {markers} {IMAGE_MARKER} markers for {len(images)} images")
    steps, reply = _reference(data["reference"]) if "reference" in data else ((), "")
    for name in images:
        resolve_inside(root, name)
    return Record(
        id=rid,
        images=images,
        question=question,
        steps=steps,
        reply=reply,
        root=root,
        **_labels(data),
    )


def _reference(data: Any) -> tuple[tuple[str, ...], str]:
    if not isinstance(data, dict) or set(data) != {"steps", "reply"}:
        raise ValueError("reference must be an object with exactly 'steps' and 'reply'")
    steps = _list(data["steps"], "reference.steps")
    if not steps:
        raise ValueError("reference.steps is empty: a path needs at least one step")
    # Whether a step can be written so that it is read back is the path format's to say.
    steps = [_text(step, f"reference.steps[{i}]") for i, step in enumerate(steps)]
    steps = [step.replace("\r\n", "\n").replace("\r", "\n") for step in steps]
    return tuple(steps), _text(data["reply"], "reference.reply")


def _labels(data: dict[str, Any]) -> dict[str, Any]:
    """The optional fields, each checked, with its default when absent."""
    category, risky = data.get("category"), data.get("risky")
    if category is not None and category not in CATEGORIES:
        raise ValueError(f"category {category!r} is not one of {', '.join(CATEGORIES)}")
    if risky is not None and not isinstance(risky, bool):
        raise ValueError("risky must be true, false or null")
    unsafe = data.get("unsafe_reply")
    if unsafe is not None:
        _text(unsafe, "unsafe_reply")
    meta = data.get("meta", {})
    if not isinstance(meta, dict):
        raise ValueError("meta must be an object")
    check_meta(meta)
    return {
        "category": category,
        "risky": risky,
        "unsafe_reply": unsafe,
        "meta": meta,
        "source": _text(data.get("source", ""), "source", empty=True),
        "license": _text(data.get("license", ""), "license", empty=True),
    }


def check_meta(value: Any, depth: int = 0) -> None:
    """ValueError for what no tree record can hold."""
    if depth > MAX_DEPTH:
        raise ValueError(f"meta is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        _text(value, "meta", empty=True)
    elif isinstance(value, dict):
        for key, item in value.items():
            _text(key, "meta", empty=True)
            check_meta(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_meta(item, depth + 1)


def parse_object(line: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, one object, no NaN, no repeated key (json would keep the last), and
    numbers that a tree record can hold: of 64 bits, finite.
    """

    def pairs(items):
        out = {}
        for key, value in items:
            if key in out:
                raise ValueError(f"field {key!r} is given twice")
            out[key] = value
        return out

    def whole(text):
        if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
            raise ValueError(f"{_short(text)} is too large a number: 64 bits are kept")
        return int(text)

    def broken(text):
        if math.isinf(float(text)):
            raise ValueError(f"{_short(text)} is too large a number")
        return float(text)

    def constant(name):
        raise ValueError(f"{name} is not a JSON number")

    try:
        text = line.decode("utf-8")
        data = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_int=whole,
            parse_float=broken,
        )
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 at byte {e.start}") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON: {e.msg} at column {e.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("a record must be a JSON object")
    return data


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}..."


def _text(value: Any, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    if not empty and not value.strip():
        raise ValueError(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # "\ud800" alone is legal JSON but no text: no tokenizer takes it
        raise ValueError(f"{name} holds half a surrogate pair") from None
    return value


def _list(value: Any, name: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {type(value).__name__}")
    return value


def records_digest(records: Iterable[Record]) -> str:
    """16 hex digits over everything in these records and their picture files, but not where they
    lie.
    """
    digest = hashlib.sha256()
    for record in records:
        fields = {name: value for name, value in vars(record).items() if name != "root"}
        digest.update(json.dumps(fields, sort_keys=True).encode())
        for path in record.image_paths():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
