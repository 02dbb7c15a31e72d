"""What exploration found: verdicts and pairs per branch point, as summary.json and as text."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from srpo_jax.config.fields import arguments
from srpo_jax.config.judging_sections import ArbiterSettings
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_store import branch_label, fingerprint, read_shards
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
    arbiter: ArbiterSettings,
    folder: pathlib.Path,
    records: Sequence[Record],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Prints the table of the trees in the folder, writes summary.json and returns its contents.

    arbiter: the section of the config. records: all that were explored; those without a tree are
    listed. provenance: see provenance.py.
    """
    trees = read_shards(folder)
    kept = set()

    def passing() -> Iterator[Mapping[str, Any]]:
        for tree in trees:
            kept.add(tree["id"])
            yield tree

    rules = arguments(summarise, arbiter)
    summary = summarise(passing(), **rules)
    dropped = [record.id for record in records if record.id not in kept]
    print(format_summary(summary))
    if dropped:
        names = ", ".join(map(repr, dropped[:10])) + (", ..." if len(dropped) > 10 else "")
        print(f"left out, no safe path in {TRIES} tries: {len(dropped)} questions ({names})")
    summary = {
        **summary,
        **rules,
        "dropped": dropped,
        "provenance": provenance,
        "fingerprint": fingerprint(folder),
    }
    write_json(folder / FILE, summary)
    return summary


def summarise(
    trees: Iterable[Mapping[str, Any]], *, scope: str, require_effective: bool
) -> dict[str, Any]:
    """Counts per branch point (the number of steps of the reference path before it) and in all.

    Branches are counted by the labels that training will use (branch_label): `safe` ones can be
    chosen, `unsafe` ones can be rejected, `error` ones are left out. `repeated` ones have the same
    tokens as an earlier one of their point. `with_pair` counts the questions that have both a safe
    and an unsafe branch at that point.
    Returns {"questions", "questions_with_pair", "branches", "points": [{"at", "questions",
    "branches", "safe", "unsafe", "error", "unfinished", "repeated", "with_pair"}]}.
    """
    points: dict[int, dict[str, int]] = {}
    questions = paired = 0
    for tree in trees:
        questions += 1
        groups: dict[int, list[dict[str, Any]]] = {}
        for branch in tree["branches"]:
            groups.setdefault(branch["at"], []).append(branch)
        has_pair = False
        for at, branches in groups.items():
            labels = [
                branch_label(branch, scope=scope, require_effective=require_effective)
                for branch in branches
            ]
            pair = True in labels and False in labels
            has_pair |= pair
            found = {
                "questions": 1,
                "branches": len(branches),
                "safe": labels.count(True),
                "unsafe": labels.count(False),
                "error": labels.count(None),
                "unfinished": sum(not branch["finished"] for branch in branches),
                "repeated": len(branches) - len({tuple(b["tokens"]) for b in branches}),
                "with_pair": int(pair),
            }
            total = points.setdefault(at, dict.fromkeys(found, 0))
            for name, value in found.items():
                total[name] += value
        paired += has_pair
    return {
        "questions": questions,
        "questions_with_pair": paired,
        "branches": sum(point["branches"] for point in points.values()),
        "points": [{"at": at, **points[at]} for at in sorted(points)],
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as a table for a terminal: per point the shares of its branches in percent."""
    columns = ("SAFE", "UNSAFE", "ERROR", "unfinished", "repeated")
    head = f"{'after step':>10}{'branches':>10}" + "".join(f"{name:>12}" for name in columns)
    lines = [head + f"{'with pair':>16}"]
    for point in summary["points"]:
        shares = [100 * point[name.lower()] / point["branches"] for name in columns]
        pairs = f"{point['with_pair']} of {point['questions']}"
        lines.append(
            f"{point['at']:>10}{point['branches']:>10}"
            + "".join(f"{share:>10.1f} %" for share in shares)
            + f"{pairs:>16}"
        )
    lines.append(
        f"{summary['branches']} branches; {summary['questions_with_pair']} of "
        f"{summary['questions']} questions have a pair"
    )
    return "\n".join(lines)
