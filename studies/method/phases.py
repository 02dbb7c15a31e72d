"""Who wins where in the micro world: few settings of six methods in every cell of a grid.

Axes: the number of questions, wrong references and the references' wording, where every question
has a reference; and beside these, fewer references and noisy verdicts. The settings are the same in
every cell: the knob that was registered for `scarce`, and two learning rates, of which validation
chooses. Methods that validation leaves far behind the best are not asked again, but for sft
filtered. Fresh seeds then answer the test split, once for all cells. What is compared, fixed
beforehand, is the mean of safe and effective. The winner of a cell is its best method if the
interval of its difference to the second does not hold 0, else nobody.

Where every question has a reference that passes, rft is sft filtered and srpo own is srpo, to the
bit: they are run once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.method.micro.data import Cell
from studies.method.protocol import TUNING_SEEDS, Method, Outcome, Setting, Study
from studies.method.statistics import difference, estimate

RATES = (5e-4, 2e-3)
CLOSE, FAR = 1.0, 6.0  # points of mean
SEEDS = (301, 302, 303, 304)
SAME = {"rft": "sft filtered", "srpo own": "srpo"}
METHODS = ("sft filtered", "rft", "orpo", "srpo", "srpo own", "branches taught")
SAID = ("mean", "safe", "effective", "recovered_together", "recovered_plan")


def methods(registered: Mapping[str, Setting]) -> dict[str, Method]:
    """registered: a setting of each method, whose knob is kept."""
    return {
        name: Method(name, "", tuple({**registered[name], "rate": rate} for rate in RATES))
        for name in METHODS
    }


def differing(cell: Cell) -> list[str]:
    """The methods that are not another one in this cell."""
    complete = cell.references == 1 and not cell.wrong and not cell.flips
    return [name for name in METHODS if not (complete and name in SAME)]


def make(study: Study, cells: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """{"seeds", "cells": [what `compared` gives, with "name", "cell": its fields, "chosen":
    {method: setting}, "validation": {method: mean}]}; all of validation first, then the fresh
    seeds one after another."""
    tuned = {name: choose(study, name) for name in cells}
    chosen = {
        name: {method: dict(rows[method]["setting"]) for method in contenders(rows)}
        for name, rows in tuned.items()
    }
    for seed in seeds:
        for name in cells:
            study.test(name, chosen[name], [seed])
    found = []
    for name in cells:
        fields = {"name": name, "cell": vars(study.world.cells[name]), "chosen": chosen[name]}
        means = {method: row["mean"] for method, row in tuned[name].items()}
        results = study.test(name, chosen[name], seeds)
        found.append({**fields, "validation": means, **compared(results)})
    return {"seeds": list(seeds), "cells": found}


def choose(study: Study, cell: str) -> dict[str, dict[str, Any]]:
    """{method: the row of its best setting on validation, as Study.tune has it}: by the first
    tuning seed, and by both where that leaves the settings within CLOSE points."""
    found = {}
    for method in differing(study.world.cells[cell]):
        for seeds in (TUNING_SEEDS[:1], TUNING_SEEDS):
            rows = sorted(study.tune(cell, [method], seeds)[method], key=lambda row: -row["mean"])
            if rows[0]["mean"] - rows[1]["mean"] > CLOSE:
                break
        found[method] = rows[0]
    return found


def contenders(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods that are within FAR points of the best one, and sft filtered."""
    best = max(row["mean"] for row in rows.values())
    return [m for m, row in rows.items() if m == "sft filtered" or row["mean"] >= best - FAR]


def compared(results: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """{"rates": {method: {of SAID: estimate}}, "order": methods by mean, "over_second",
    "over_sft": differences of the best one's mean, None where it is that one, "winner": a method,
    or None for nobody}."""
    rates = {
        method: {name: estimate(runs, name)._asdict() for name in SAID}
        for method, runs in results.items()
    }
    order = sorted(results, key=lambda method: -rates[method]["mean"]["value"])

    def over(other: str) -> dict[str, float] | None:
        if other == order[0]:
            return None
        return difference(results[order[0]], results[other], "mean")._asdict()

    second = over(order[1])
    won = second is not None and second["low"] > 0
    return {
        "rates": rates,
        "order": order,
        "over_second": second,
        "over_sft": over("sft filtered"),
        "winner": order[0] if won else None,
    }
