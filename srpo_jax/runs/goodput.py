"""Goodput of a run from its ledger: productive step time over wall time, and where the rest went.

    goodput = (seconds in steps whose result was kept) / (end of the run - its first start)

Google's definition (ml-goodput-measurement), from our own file. A step that a crash made void, as
no checkpoint held it, is not productive: its seconds are `lost`. Between two sessions the run was
`down`: that includes what a killed session did after its last line, at most 30 s.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from srpo_jax.console import duration
from srpo_jax.runs.ledger import FILE, PHASES, read
from srpo_jax.runs.workdir import readable

PARTS = (*PHASES, "lost", "down")
MEANING = {
    "step": "steps that counted",
    "lost": "steps that a crash made void",
    "down": "between two sessions",
    "init": "imports, model, data",
    "restore": "reading a checkpoint",
    "compile": "the first step of a session",
    "data": "waiting for a batch",
    "validate": "looks at held-out data",
    "save": "held up by saving",
    "verify": "reading the last checkpoint back",
    "other": "the rest",
}


def goodput(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """{"wall", "goodput", "parts": {part: seconds}, "sessions", "crashes", "lost_steps", "steps"}
    from the ledger of the workdir; None without one. The parts add up to wall but for rounding.
    """
    path = pathlib.Path(workdir, FILE)
    with readable(path):
        return summarise(read(path))


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """`goodput` of a ledger's lines, in the order in which they were written."""
    if not rows:
        return None
    parts = dict.fromkeys(PARTS, 0.0)
    sessions = crashes = lost_steps = 0
    begin = end = float(rows[0].get("start", rows[0]["t"]))
    kept: list[tuple[int, int, float]] = []  # (from step, to step, seconds of them)
    step = 0
    for row in rows:
        if row.get("event") == "start":
            sessions += 1
            crashes += bool(row.get("crashed"))
            parts["down"] += max(0.0, float(row.get("start", row["t"])) - end)
            lost_steps += max(0, step - int(row.get("step", 0)))
            step = int(row.get("step", 0))
            kept, void = _cut(kept, step)
            parts["lost"] += void
        for name, seconds in (row.get("spent") or {}).items():
            if name == "step":
                kept.append((step, int(row.get("step", step)), float(seconds)))
            else:
                parts[name if name in parts else "other"] += float(seconds)
        step, end = int(row.get("step", step)), float(row["t"])
    parts["step"] = sum(seconds for _, _, seconds in kept)
    wall = end - begin
    return {
        "wall": wall,
        "goodput": parts["step"] / wall if wall > 0 else 0.0,
        "parts": parts,
        "sessions": sessions,
        "crashes": crashes,
        "lost_steps": lost_steps,
        "steps": step,
    }


def _cut(kept: list[tuple[int, int, float]], step: int) -> tuple[list, float]:
    """(what of `kept` is of steps up to `step`, the seconds of the rest). A span of which a part
    is lost is divided by steps.
    """
    left, void = [], 0.0
    for first, last, seconds in kept:
        if last <= step:
            left.append((first, last, seconds))
            continue
        share = max(0, step - first) / max(1, last - first)  # a span may lie within a step
        void += seconds * (1 - share)
        if share:
            left.append((first, step, seconds * share))
    return left, void


def line(found: dict[str, Any]) -> str:
    """For a terminal: goodput, and the largest three of the rest."""
    rest = {name: s for name, s in found["parts"].items() if name != "step" and s > 0}
    largest = sorted(rest, key=rest.__getitem__, reverse=True)[:3]
    told = ", ".join(f"{name} {rest[name] / found['wall']:.1%}" for name in largest)
    said = f"goodput {found['goodput']:.1%} of {duration(found['wall'])}"
    said += f" over {found['sessions']} session{'s' * (found['sessions'] != 1)}"
    if found["crashes"]:
        said += f", {found['crashes']} of them after a crash, {found['lost_steps']} steps lost"
    return f"{said}; the rest: {told}" if told else said


def goodput_table(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The report's table, None for a run without a ledger: {"line": goodput in a sentence,
    "rows": [(part, time, share, meaning)]}, the largest part first.
    """
    found = goodput(workdir)
    if found is None or found["wall"] <= 0:
        return None
    parts = {name: seconds for name, seconds in found["parts"].items() if seconds > 0}
    rows = [
        (name, duration(parts[name]), f"{parts[name] / found['wall']:.1%}", MEANING[name])
        for name in sorted(parts, key=parts.__getitem__, reverse=True)
    ]
    return {"line": line(found), "rows": rows}
