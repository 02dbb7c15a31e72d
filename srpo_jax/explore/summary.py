"""What exploration sampled: branches per branch point, as summary.json and as text."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    folder: pathlib.Path, records: Sequence[Record], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Prints the table of the trees in the folder, writes summary.json and returns its contents.

    records: all that were explored; those without a tree are listed. provenance: see provenance.py.
    What was written before for the same shards is printed again, and no tree is read.
    """
    summary = read_summary(folder)
    if summary is None:
        trees, kept = read_shards(folder), set()

        def passing() -> Iterator[Mapping[str, Any]]:
            for tree in trees:
                kept.add(tree["id"])
                yield tree

        summary = {
            **summarise(passing()),
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


def summarise(trees: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts per branch point (the number of steps of the reference path before it) and in all.

    `repeated` branches have the same tokens as an earlier one of their point. `statuses` are what
    the path format says of every branch.
    Returns {"questions", "branches", "statuses", "points": [{"at", "questions", "branches",
    "unfinished", "unread", "repeated"}]}; unread: finished, but without a reply that can be read.
    """
    points: dict[int, dict[str, int]] = {}
    statuses: Counter[str] = Counter()
    questions = 0
    for tree in trees:
        questions += 1
        groups: dict[int, list[dict[str, Any]]] = {}
        for branch in tree["branches"]:
            groups.setdefault(branch["at"], []).append(branch)
            statuses[branch["status"]] += 1
        for at, branches in groups.items():
            found = {
                "questions": 1,
                "branches": len(branches),
                "unfinished": sum(not branch["finished"] for branch in branches),
                "unread": sum(b["finished"] and b["reply_text"] is None for b in branches),
                "repeated": len(branches) - len({tuple(b["tokens"]) for b in branches}),
            }
            total = points.setdefault(at, dict.fromkeys(found, 0))
            for name, value in found.items():
                total[name] += value
    return {
        "questions": questions,
        "branches": sum(point["branches"] for point in points.values()),
        "statuses": dict(sorted(statuses.items())),
        "points": [{"at": at, **points[at]} for at in sorted(points)],
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
