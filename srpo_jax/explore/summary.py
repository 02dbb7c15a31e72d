"""What exploration sampled: branches per branch point, as summary.json and as text."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_store import fingerprint, read_shards
from srpo_jax.errors import UserError
from srpo_jax.explore.self_reference import TRIES
from srpo_jax.files import read_json, write_json

FILE = "summary.json"  # in the folder of the trees


def read_summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """The summary of the shards that are in the folder now, if a worker has written it."""
    try:
        found = read_json(folder / FILE)
    except (OSError, UserError):
        return None
    return found if found.get("fingerprint") == fingerprint(folder) else None


def write_summary(
    folder: pathlib.Path,
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    counts: BranchCounts | None = None,
) -> dict[str, Any]:
    """Prints the table of the trees in the folder, writes summary.json and returns its contents.

    records: all that were explored; those without a tree are listed. provenance: see provenance.py.
    counts: of who has just written all of the trees. Without them, and where nothing was written
    before for the same shards, the trees are read.
    """
    summary = read_summary(folder)
    if summary is None:
        kept: set[str] = set()
        if counts is None:
            counts = BranchCounts()
            for tree in read_shards(folder):
                kept.add(tree["id"])
                counts.add(tree)
        summary = {
            **counts.found(),
            "dropped": [record.id for record in records if record.id not in kept],
            "provenance": provenance,
            "fingerprint": fingerprint(folder),
        }
        write_json(folder / FILE, summary)
    print(format_summary(summary))
    if dropped := summary["dropped"]:
        names = ", ".join(map(repr, dropped[:10])) + (", ..." if len(dropped) > 10 else "")
        print(f"left out, no safe path in {TRIES} tries: {len(dropped)} questions ({names})")
    return summary


class BranchCounts:
    """Counts per branch point (the number of steps of the reference path before it) and in all, of
    trees as they come.
    """

    def __init__(self) -> None:
        self._points: dict[int, dict[str, int]] = {}
        self._statuses: Counter[str] = Counter()
        self._questions = 0

    def add(self, tree: Mapping[str, Any]) -> None:
        """Takes in a tree. `repeated` branches have the same tokens as an earlier one of their
        point.
        """
        self._questions += 1
        groups: dict[int, list[dict[str, Any]]] = {}
        for branch in tree["branches"]:
            groups.setdefault(branch["at"], []).append(branch)
            self._statuses[branch["status"]] += 1
        for at, branches in groups.items():
            found = {
                "questions": 1,
                "branches": len(branches),
                "unfinished": sum(not branch["finished"] for branch in branches),
                "unread": sum(b["finished"] and b["reply_text"] is None for b in branches),
                "repeated": len(branches) - len({tuple(b["tokens"]) for b in branches}),
            }
            total = self._points.setdefault(at, dict.fromkeys(found, 0))
            for name, value in found.items():
                total[name] += value

    def found(self) -> dict[str, Any]:
        """{"questions", "branches", "statuses", "points": [{"at", "questions", "branches",
        "unfinished", "unread", "repeated"}]}. statuses: what the path format says of every branch;
        unread: finished, but without a reply that can be read.
        """
        return {
            "questions": self._questions,
            "branches": sum(point["branches"] for point in self._points.values()),
            "statuses": dict(sorted(self._statuses.items())),
            "points": [{"at": at, **self._points[at]} for at in sorted(self._points)],
        }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as a table for a terminal: per point the shares of its branches in percent."""
    columns = ("unfinished", "unread", "repeated")
    head = f"{'after step':>10}{'branches':>10}" + "".join(f"{name:>14}" for name in columns)
    lines = [head]
    for point in summary["points"]:
        shares = [100 * point[name] / point["branches"] for name in columns]
        cells = "".join(f"{share:>12.1f} %" for share in shares)
        lines.append(f"{point['at']:>10}{point['branches']:>10}{cells}")
    told = ", ".join(f"{name} {count}" for name, count in summary["statuses"].items())
    lines.append(
        f"{summary['branches']} branches of {summary['questions']} questions; read as: {told}"
    )
    return "\n".join(lines)
