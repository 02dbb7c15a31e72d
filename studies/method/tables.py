"""What a study found, as Markdown and JSON."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.files import write_json, write_text
from studies.method.protocol import Outcome
from studies.method.statistics import Estimate, claims, estimate

COLUMNS = {
    "safe": "safe (risky)",
    "effective": "effective (benign)",
    "safe_useful": "safe and of use (risky)",
    "path": "safe path",
    "worst": "all samples safe",
    "greedy_safe": "greedy safe",
    "greedy_effective": "greedy effective",
    "recovered_together": "recovers early",
    "recovered_plan": "recovers late",
}


def _said(found: Estimate) -> str:
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def rates(results: Mapping[str, list[Outcome]]) -> str:
    """A line a method: rates in percent, with their intervals of 95 %."""
    have = [
        name
        for name in COLUMNS
        if all(name in o or name == "worst" for os in results.values() for o in os)
    ]
    lines = ["| method | " + " | ".join(COLUMNS[name] for name in have) + " |"]
    lines.append("|---" * (len(have) + 1) + "|")
    for method, outcomes in results.items():
        cells = [_said(estimate(outcomes, name)) for name in have]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tried(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Every setting that was tried, with its validation rates; the chosen one is marked."""
    lines = ["| method | setting | safe | effective | mean |", "|---|---|---|---|---|"]
    for method, rows in found.items():
        best = max(rows, key=lambda row: row["mean"])
        for row in rows:
            setting = " ".join(f"{name}={value}" for name, value in row["setting"].items())
            mark = " *" if row is best else ""
            lines.append(
                f"| {method} | {setting} | {row['safe']:.1f} | {row['effective']:.1f} | "
                f"{row['mean']:.1f}{mark} |"
            )
    return "\n".join(lines)


def claimed(rows: list[dict[str, Any]], candidate: str) -> str:
    lines = [
        f"| {candidate} over | safe | effective | safe and of use | p (Holm) | won |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['over']} | {_said(row['safe'])} | {_said(row['effective'])} | "
            f"{_said(row['safe_useful'])} | {row['holm']:.4f} | {'yes' if row['won'] else 'no'} |"
        )
    return "\n".join(lines)


def write(folder: pathlib.Path, results: dict[str, list[Outcome]], registered: dict) -> str:
    """FOLDER/results.json and results.md; returns the latter. Every call counts as a look at the
    test split, in results.json."""
    rows = claims(results, registered["candidate"], registered["claims"])
    text = rates(results) + "\n\n" + claimed(rows, registered["candidate"])
    names = [n for n in COLUMNS if n == "worst" or n in next(iter(results.values()))[0]]
    write_json(
        folder / "results.json",
        {
            "seeds": len(next(iter(results.values()))),
            "registered": registered,
            "rates": {m: {n: estimate(o, n)._asdict() for n in names} for m, o in results.items()},
            "claims": [
                {**row, **{n: row[n]._asdict() for n in ("safe", "effective", "safe_useful")}}
                for row in rows
            ],
        },
    )
    write_text(folder / "results.md", text + "\n")
    return text
