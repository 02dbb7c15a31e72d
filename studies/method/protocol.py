"""One protocol for every method: settings by validation, then fresh seeds and the test split once.

    tune      each setting of each method, two seeds, validation alone
    register  the best setting of each method, the candidate, and what it claims: registered.json,
              written once and never changed
    test      fresh seeds, which vary questions, branches and order, on the test split

A run is a file, OUT/CELL/METHOD/SPLIT-SETTING-SEED.json, so a study that was stopped goes on where
it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.files import write_json

TUNING_SEEDS = (1, 2)
FRESH_SEEDS = tuple(range(101, 109))
Setting = Mapping[str, Any]
Outcome = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method and the settings of it that are tried. later: it was thought of after the others
    were registered, and is tried on validation alone."""

    name: str
    what: str
    settings: tuple[Setting, ...]
    later: bool = False


class World(Protocol):
    """cells: what there is to learn from, by name. run: (setting, cell, seed, splits) -> {split:
    what the trained policy answers, see micro/run.py}."""

    name: str
    methods: Mapping[str, Method]
    cells: Mapping[str, Any]

    def run(
        self, setting: Setting, cell: Any, seed: int, splits: tuple[str, ...]
    ) -> dict[str, Outcome]: ...


class Study:
    """The runs of a world that lie in a folder, made as they are asked for."""

    def __init__(self, world: World, out: pathlib.Path, tell: Callable[[str], None] = print):
        self.world, self.out, self.tell = world, out, tell

    def outcome(self, cell: str, method: str, setting: Setting, seed: int, split: str) -> Outcome:
        """Of a run, which is made if it is not there."""
        digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]
        name = method.replace(" ", "_").replace(",", "").replace("+", "and")
        path = self.out / cell / name / f"{split}-{digest}-{seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self.world.run(setting, self.world.cells[cell], seed, (split,))[split]
            write_json(path, {"setting": dict(setting), "seed": seed, "outcome": found})
            self.tell(f"{cell}, {method}, {dict(setting)}, seed {seed}, {split}: {brief(found)}")
        return json.loads(path.read_text(encoding="utf-8"))["outcome"]

    def tune(
        self, cell: str, methods: Sequence[str], seeds: Sequence[int] = TUNING_SEEDS
    ) -> dict[str, list[dict[str, Any]]]:
        """{method: [{"setting", "safe", "effective", "mean"} of every setting]} on validation, the
        mean over the tuning seeds, in percent."""
        found = {}
        for method in methods:
            rows = []
            for setting in self.world.methods[method].settings:
                runs = [self.outcome(cell, method, setting, s, "validation") for s in seeds]
                safe = float(np.mean([rate(run, "safe") for run in runs]))
                effective = float(np.mean([rate(run, "effective") for run in runs]))
                mean = (safe + effective) / 2
                rows.append(
                    {"setting": setting, "safe": safe, "effective": effective, "mean": mean}
                )
            found[method] = rows
        return found

    def register(
        self, cell: str, tried: Mapping[str, list[dict[str, Any]]], compared: Sequence[str]
    ) -> dict[str, Any]:
        """What the fresh seeds will be asked, written down before them: {"chosen": {method:
        setting}, "candidate": the method of the best mean on validation, but for those of
        `compared`, "claims": what it is compared with}.

        Errors: UserError when OUT/CELL/registered.json says something else.
        """
        best = {
            method: max(rows, key=lambda row: row["mean"])
            for method, rows in tried.items()
            if not self.world.methods[method].later
        }
        others = [m for m in best if m not in ("base", "sft", *compared)]
        made = {
            "chosen": {m: dict(row["setting"]) for m, row in best.items()},
            "candidate": max(others, key=lambda m: best[m]["mean"]),
            "claims": [m for m in compared if m in best],
        }
        path = self.out / cell / "registered.json"
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before != made:
                raise UserError(
                    f"{path} was written before and says something else: give another --out"
                )
            return before
        write_json(path, made)
        return made

    def test(
        self, cell: str, chosen: Mapping[str, Setting], seeds: Sequence[int], split: str = "test"
    ) -> dict[str, list[Outcome]]:
        """{method: outcomes of the fresh seeds on the test split}."""
        return {
            method: [self.outcome(cell, method, setting, seed, split) for seed in seeds]
            for method, setting in chosen.items()
        }


def rate(outcome: Outcome, name: str) -> float:
    """In percent, over all answers; greedy rates have one answer a question, recoveries four."""
    each = 1 if name.startswith("greedy") else 4 if name.startswith("recovered") else None
    each = outcome["samples"] if each is None else each
    return 100 * float(np.mean(outcome[name])) / each


def brief(outcome: Outcome) -> str:
    return ", ".join(
        f"{name} {rate(outcome, name):.1f}"
        for name in ("safe", "effective", "recovered_together", "recovered_plan")
        if name in outcome
    )
