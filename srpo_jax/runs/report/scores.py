"""The evaluations of a run for the report: tiles, table, path against reply, bars by category.

Reads the dicts of eval/NAME/scores.json, and returns what templates/results.html shows of them. A
rate is a number in percent, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from srpo_jax.judge.results.rates import RATES
from srpo_jax.judge.roles import warning
from srpo_jax.runs.judge_facts import judge_facts

SHOWN = tuple(rate for rate in RATES if rate.title)
TILES = ("safety_rate", "effectiveness_rate", "both_all", "path_safety_rate")
# (path, reply) -> what the literature calls it
NOTES = {("SAFE", "UNSAFE"): "late failure", ("UNSAFE", "SAFE"): "self-corrected"}
PANELS = (
    ("safety_rate", "n_risky", "Safe replies to risky questions"),
    ("effectiveness_rate", "n_benign", "Effective replies to harmless ones"),
)


def tiles(before: Mapping | None, after: Mapping) -> list[dict[str, Any]]:
    """The rates that are shown large: {"rate", "new", "old"}; old is None without a `before`."""
    return [
        {"rate": rate, "new": after[rate.name], "old": (before or {}).get(rate.name)}
        for rate in SHOWN
        if rate.name in TILES and after.get(rate.name) is not None
    ]


def table(
    evaluations: Mapping[str, Mapping], before: str | None, after: str | None
) -> dict[str, Any]:
    """All rates of all evaluations; with the change where there is a before and an after.

    {"names", "change": whether there is one, "rows": [{"rate", "values", "change"}],
    "counts": [(questions, risky ones)], "judges": [(arbiter, digest)]}.
    """
    change = before is not None and after is not None
    rows = []
    for rate in SHOWN:
        values = [scores.get(rate.name) for scores in evaluations.values()]
        if all(value is None for value in values):
            continue
        old, new = (evaluations.get(name or "", {}).get(rate.name) for name in (before, after))
        rows.append(
            {
                "rate": rate,
                "values": values,
                "change": change and _change(old, new, rate.more_is_better),
            }
        )
    counts = [(scores.get("n", 0), scores.get("n_risky", 0)) for scores in evaluations.values()]
    found = [scores.get("judge") or {} for scores in evaluations.values()]
    judges = [(judge.get("arbiter", "not recorded"), judge.get("digest", "")) for judge in found]
    names = list(evaluations)
    return {"names": names, "change": change, "rows": rows, "counts": counts, "judges": judges}


def judges(evaluations: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """Each judge once: {"of": names of the evaluations it judged, "facts": see judge_facts}."""
    found: dict[str, dict[str, Any]] = {}
    for name, scores in evaluations.items():
        judge = scores.get("judge")
        if judge:
            facts = judge_facts(judge)
            found.setdefault(str(judge["digest"]), {"of": [], "facts": facts})["of"].append(name)
    return list(found.values())


def warnings(evaluations: Mapping[str, Mapping], training: Mapping[str, Any] | None) -> list[str]:
    """What is to be said of judges that are in both roles, each sentence once."""
    found = (warning(training, scores.get("judge")) for scores in evaluations.values())
    return [said for said in dict.fromkeys(found) if said]


def _change(old: float | None, new: float | None, more_is_better: bool) -> dict[str, str]:
    """A cell: {"css", "text", "word"}."""
    if old is None or new is None:
        return {"css": "", "text": "–", "word": ""}
    difference = new - old
    if abs(difference) < 0.05:
        return {"css": "change", "text": "0.0", "word": ""}
    better = (difference > 0) == more_is_better
    return {
        "css": "change safe" if better else "change unsafe",
        "text": f"{'+' if difference > 0 else '−'}{abs(difference):.1f}",
        "word": "better" if better else "worse",
    }


def methods(base: Mapping | None, runs: Mapping[str, Sequence[Mapping]]) -> dict[str, Any]:
    """One row a method: means over its seeds, with deviations where there are several.

    {"rates", "rows": [{"method", "seeds", "cells": [(mean, deviation or None)]}]}.
    """
    rates = [rate for rate in SHOWN if rate.name != "error_rate"]
    rows = []
    for method, scores in {**({"base": [base]} if base else {}), **runs}.items():
        cells = []
        for rate in rates:
            values = [row[rate.name] for row in scores if row.get(rate.name) is not None]
            spread = stdev(values) if len(values) > 1 else None
            cells.append((mean(values) if values else None, spread))
        rows.append({"method": method, "seeds": len(scores), "cells": cells})
    return {"rates": rates, "rows": rows}


def confusion(name: str, scores: Mapping) -> dict[str, Any]:
    """Path against reply: counts and shares, one cell per combination that can be told.

    {"name", "total", "verdicts", "rows": [(verdict of the path, cells)]}, a cell for every verdict
    of the reply: {"reply", "count", "share", "note"}.
    """
    counts = scores.get("confusion") or {}
    total = sum(counts.values()) or 1
    cells = {tuple(p.split("_", 1)[1] for p in key.split("/")): n for key, n in counts.items()}
    used = {v for key, n in cells.items() if n for v in key} | {"SAFE", "UNSAFE"}
    verdicts = [v for v in ("SAFE", "UNSAFE", "ERROR") if v in used]
    rows = [
        (
            path,
            [
                {
                    "reply": reply,
                    "count": cells.get((path, reply), 0),
                    "share": 100 * cells.get((path, reply), 0) / total,
                    "note": NOTES.get((path, reply), ""),
                }
                for reply in verdicts
            ],
        )
        for path in verdicts
    ]
    return {"name": name, "total": total, "verdicts": verdicts, "rows": rows}


def categories(before: Mapping | None, after: Mapping) -> dict[str, Any] | None:
    """Per category a rate before and a rate after: safe of the risky, effective of the harmless.

    {"compared": whether there is a before, "titles", "rows": [(category, cells)]}, a cell for every
    title: (old, new, questions). None where there is nothing to show.
    """
    now = after.get("by_category") or {}
    then = (before or {}).get("by_category") or {}
    panels = [panel for panel in PANELS if any(scores.get(panel[1]) for scores in now.values())]
    if not now or not panels:
        return None
    rows = [
        (
            name.replace("_", " ").capitalize(),
            [
                (then.get(name, {}).get(rate), now[name].get(rate), now[name].get(count) or 0)
                for rate, count, _ in panels
            ],
        )
        for name in sorted(now)
    ]
    titles = [title for _, _, title in panels]
    return {"compared": bool(before), "titles": titles, "rows": rows}
