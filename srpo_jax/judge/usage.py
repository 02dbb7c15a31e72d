"""What asking judges has cost so far: WORKDIR/usage.jsonl, for people and the report.

A row is what was used since the row before: of one judge, in one stage, by one command. It is
appended with one write, so several commands may write at once; what a kill tore is passed over.
Verdicts are apart from it: it has times in it and can be deleted.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from srpo_jax.arbiter.chat.cost import Usage
from srpo_jax.files import parse_json
from srpo_jax.keepers import extend

FILE = "usage.jsonl"
TREES = "trees"  # the stage that judges them; that of answers is "answers NAME"
_ALL = tuple(field.name for field in dataclasses.fields(Usage))
_COUNTS = tuple(name for name in _ALL if name != "dollars")


class UsageLog:
    """The rows of one command. place: folder of the file. stage: what is judged, as TREES. judge:
    with "arbiter" and "digest". usage: counts on while the judge is asked; anything that is no
    Usage, as of an arbiter that asks no chat model, gets no row.
    """

    def __init__(
        self,
        place: pathlib.Path,
        stage: str,
        judge: dict[str, Any],
        verdicts: str,
        usage: object,
    ):
        self._path = place / FILE
        self._usage = usage if isinstance(usage, Usage) else None
        self._before = Usage()
        named = {name: judge[name] for name in ("arbiter", "digest")}
        self._about = {"stage": stage, **named, "verdicts": verdicts}

    def write(self) -> None:
        """Appends what was used since the last call, if anything was."""
        if self._usage is None or self._usage == self._before:
            return
        now = dataclasses.replace(self._usage)
        more = Usage(*(getattr(now, name) - getattr(self._before, name) for name in _ALL))
        row = {
            **self._about,
            **dataclasses.asdict(more),
            "dollars": more.dollars or None,  # no price: not known, not nothing
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        _append(self._path, json.dumps(row))
        self._before = now


def _append(path: pathlib.Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        torn = False
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + line.encode() + b"\n")
    extend(path)


def read_usage(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of the file in a folder; [] without one. What is no row is left out."""
    path = folder / FILE
    if not path.is_file():
        return []
    found = []
    with open(path, "rb") as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:  # torn by a kill
                continue
            if isinstance(row, dict) and _is_row(row):
                found.append(row)
    return found


def summed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each stage and judge, in the order in which they came: {"stage", "arbiter",
    "digest", the counts of a Usage, "dollars": None when no row has any, "unpriced": whether some
    have none though tokens were counted}.
    """
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["stage"], row["digest"]
        empty = {name: row[name] for name in ("stage", "arbiter", "digest")}
        into = sums.setdefault(
            key, {**empty, **dict.fromkeys(_COUNTS, 0), "dollars": None, "unpriced": False}
        )
        for name in _COUNTS:
            into[name] += row[name]
        if row["dollars"] is not None:
            into["dollars"] = (into["dollars"] or 0.0) + row["dollars"]
        elif row["tokens_in"] or row["tokens_out"]:
            into["unpriced"] = True
    return list(sums.values())


def _is_row(row: dict[str, Any]) -> bool:
    texts = all(isinstance(row.get(name), str) for name in ("stage", "arbiter", "digest"))
    counts = all(type(row.get(name)) is int for name in _COUNTS)
    return texts and counts and isinstance(row.get("dollars", ""), float | int | None)
