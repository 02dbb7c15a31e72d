"""Label Studio's JSON: tasks of a review out, annotations back in as decisions.

The shapes are those of Label Studio 1.23: a list of tasks, each with `data` whose keys the $names
of the labelling config are; an export adds `annotations`, whose `result` has a list of what was
chosen and written. Pictures are not in the file: they are read from local storage, whose root has
to hold the folder `images`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from srpo_jax.data_pipelines.construct.review.decisions import (
    CHOICES,
    GRADES,
    Reviewer,
    checked,
)
from srpo_jax.data_pipelines.construct.review.items import FIELDS, RECORDS, Review
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import MAX_JSON, parse_json, read_file, write_text

TASKS, CONFIG = "label_studio.json", "label_studio.xml"
LOCAL = "/data/local-files/?d="
STEP = "\n\n"  # between the steps of a path, which have a line each


def write(review: Review, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the tasks and the labelling config; returns where."""
    tasks, config = folder / TASKS, folder / CONFIG
    rows = [{"data": _data(item, review)} for item in review.items]
    write_text(tasks, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    write_text(config, _config(review))
    return tasks, config


def _data(item: Mapping[str, Any], review: Review) -> dict[str, Any]:
    data = {
        "key": item["key"],
        "review": review.digest,
        "facts": ", ".join(filter(None, item["facts"])),
    }
    data |= {f"image{i}": f"{LOCAL}{name}" for i, name in enumerate(item["images"])}
    most = max(len(each["images"]) for each in review.items)
    data |= {f"image{i}": "" for i in range(len(item["images"]), most)}
    return data | {name: _text(item, name) for name in _names(review)}


def _names(review: Review) -> tuple[str, ...]:
    return FIELDS if review.kind == RECORDS else ("question", "text")


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item[name]
    return STEP.join(value) if name == "steps" else value or ""


def _config(review: Review) -> str:
    most = max((len(item["images"]) for item in review.items), default=0)
    lines = ["<View>"]
    lines += [f'  <Image name="image{i}" value="$image{i}"/>' for i in range(most)]
    lines.append('  <Text name="facts" value="$facts"/>')
    for name in _names(review):
        lines.append(f"  <Header value={quoteattr(name.replace('_', ' '))}/>")
        lines.append(f'  <Text name="{name}" value="${name}"/>')
        if review.kind == RECORDS:
            lines.append(
                f'  <TextArea name="new_{name}" toName="{name}" value="${name}" editable="true" '
                'maxSubmissions="1"/>'
            )
    lines += _choices("decision", CHOICES[review.kind], required=True)
    if review.kind == RECORDS:
        for name in GRADES:
            lines += _choices(name, ("1", "2", "3"), required=False)
    lines.append('  <TextArea name="note" toName="question" maxSubmissions="1"/>')
    return "\n".join([*lines, "</View>", ""])


def _choices(name: str, words: tuple[str, ...], *, required: bool) -> list[str]:
    said = str(required).lower()
    inside = [f'    <Choice value="{word}"/>' for word in words]
    head = f'  <Choices name="{name}" toName="question" choice="single" required="{said}">'
    return [head, *inside, "  </Choices>"]


def is_export(path: pathlib.Path) -> bool:
    """Whether a file is a list, as Label Studio exports; the page saves an object."""
    return path.is_file() and read_file(path, MAX_JSON).lstrip()[:1] == b"["


def read(path: pathlib.Path, review: Review) -> list[Reviewer]:
    """The decisions of an export, by annotator. Errors: UserError that names file and task."""
    try:
        tasks = parse_json(read_file(path, MAX_JSON))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {one_line(error, 120)}") from None
    items = {item["key"]: item for item in review.items}
    found: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(tasks):
        where = f"{path}: task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or data.get("key") not in items:
            raise UserError(f"{where}: is not of this review")
        if data.get("review") != review.digest:
            raise UserError(f"{where}: is about another page, which has changed since")
        for annotation in task.get("annotations", []):
            if annotation.get("was_cancelled"):
                continue
            who = f"label studio {_who(annotation.get('completed_by'))}"
            row = _decision(annotation.get("result", []), items[data["key"]], where)
            found.setdefault(who, {})[data["key"]] = row
    if not found:
        raise UserError(f"{path}: nobody has annotated anything")
    return [Reviewer(who, checked(rows, review, f"{path}, {who}")) for who, rows in found.items()]


def _who(value: Any) -> str:
    return str(value.get("id") if isinstance(value, dict) else value)


def _decision(results: Any, item: Mapping[str, Any], where: str) -> dict[str, Any]:
    row: dict[str, Any] = {"edits": {}}
    try:
        for result in results:
            name, value = result["from_name"], result["value"]
            if "choices" in value:
                (word,) = value["choices"]
                row[name] = int(word) if name in GRADES else word
            elif "text" in value:
                text = value["text"][0] if isinstance(value["text"], list) else value["text"]
                if name == "note":
                    row["note"] = text
                elif text != _text(item, field := name.removeprefix("new_")):
                    row["edits"][field] = text.split(STEP) if field == "steps" else text
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{where}: not what Label Studio exports: {one_line(error, 80)}") from None
    # What was changed and accepted is an edit; what was changed and rejected is rejected.
    if row.get("decision") == "accept" and row["edits"]:
        row["decision"] = "edit"
    if row.get("decision") == "edit" and not row["edits"]:
        row["decision"] = "accept"
    if row.get("decision") != "edit":
        row["edits"] = {}
    return row
