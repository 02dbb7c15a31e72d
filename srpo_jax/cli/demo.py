"""`srpo demo`: the whole road at laptop size, in one process, on the embedded world SSUI-mini.

    draw the world -> evaluate the base policy -> explore -> judge -> train -> export
    -> evaluate the export -> report

Every stage is the one that its own verb runs, and writes what that verb writes. Running the command
again goes on where it stopped: finished shards of trees and checkpoints are taken up again.

With several methods or seeds all runs train on the same explored branches for the same number of
optimizer steps, each in WORKDIR/runs/METHOD-SEED.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from srpo_jax.cli.validation.evaluators import make_evaluators
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import export
from srpo_jax.judge.judge import judge
from srpo_jax.runs.methods_table.collect import collect
from srpo_jax.runs.methods_table.formats import render
from srpo_jax.runs.report.page import write_report
from srpo_jax.train.loop import train

FIGURES = (  # of the last line
    *("safety_rate", "effectiveness_rate", "both_all", "path_safety_rate"),
    *("self_correction_rate", "late_failure_rate"),
)
Scores = Mapping[str, Any]


def main(
    make_config: Callable[[str], Config],
    *,
    workdir: str | os.PathLike,
    methods: Sequence[str] = ("base", "srpo"),
    seeds: int = 1,
) -> int:
    """Runs the demo and returns the exit code. make_config: variant name -> validated config.

    methods: of base, sft, orpo, dpo, srpo; "base" stands for the policy before training and is
    always evaluated. The last line printed is one JSON object with the figures.
    """
    start = time.monotonic()
    workdir = pathlib.Path(workdir)
    trained = [method for method in methods if method != "base"]
    alone = len(trained) == 1 and seeds == 1
    stages = Stages(3 + len(trained) * seeds * 3 + 1)

    def configure(variant: str, **changes: Any) -> Config:
        """With the world drawn once for all runs, in WORKDIR/data. changes: of the data section."""
        config = make_config(variant)
        for split in ("train", "test"):
            name = f"{split}_records"
            path = records_path(config.data.records(split), workdir, field=f"data.{name}")
            changes[name] = str(path)
        return replace(config, data=replace(config.data, **changes))

    config = configure(trained[0] if trained else "srpo")
    stages.next("evaluate the base policy on held-out combinations")
    evaluate(config, workdir, "before")
    results: dict[str, list[Scores]] = {"base": [judge(config, workdir, answers="before")]}
    folders: dict[str, pathlib.Path] = {}
    if trained:
        stages.next("explore: branches from every prefix of the reference path")
        trees = explore(config, workdir)
        stages.next("judge the branches")
        judge(config, workdir)
    for method in trained:
        for seed in range(seeds):
            config = configure(method, trees=str(trees))
            # The seed is of the order of questions; the branches are the same.
            config = replace(config, seed=config.seed + seed)
            folder = workdir if alone else workdir / "runs" / f"{method}-{seed}"
            folders[f"{method}-{seed}"] = folder
            stages.next(f"train {method}, seed {config.seed}, {config.train.steps} steps")
            train(config, folder, make_evaluators=make_evaluators)
            stages.next(f"export {method}")
            out = folder / "export"
            shutil.rmtree(out, ignore_errors=True)  # of an earlier demo in this workdir
            export(folder, out)
            stages.next(f"evaluate the exported {method}")
            evaluate(config, folder, "after", model_dir=out)
            result = judge(config, folder, answers="after")
            results.setdefault(method, []).append(result)
    stages.next("report")
    report = write_report(workdir)

    figures = {
        "seconds": round(time.monotonic() - start, 1),
        "seeds": seeds,
        "methods": {
            method: {name: _figure(scores, name) for name in FIGURES}
            for method, scores in results.items()
        },
    }
    print(f"\n{render(collect([workdir]), 'terminal')}")
    for name, folder in folders.items():
        print(f"export {name}: {folder / 'export'}")
    print(f"report: {report}")
    print(json.dumps(figures), flush=True)
    return 0


class Stages:
    """Numbered headings with the time since the start, so that a reader sees how far it is."""

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()

    def next(self, title: str) -> None:
        self.done += 1
        spent = time.monotonic() - self.start
        print(f"\n== {min(self.done, self.total)}/{self.total} {title} ({spent:.0f} s)", flush=True)


def _values(scores: Sequence[Scores], name: str) -> list[float]:
    return [row[name] for row in scores if row[name] is not None]


def _figure(scores: Sequence[Scores], name: str) -> dict[str, float] | None:
    """{"mean", "std"} over seeds, in percent; the sample standard deviation, 0 for one seed."""
    values = _values(scores, name)
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "std": round(std, 4)}
