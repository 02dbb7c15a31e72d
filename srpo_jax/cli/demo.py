"""`srpo demo`: the whole road at laptop size, in one process, on the embedded world SSUI-mini.

    draw the world -> evaluate the base policy -> one round of `srpo run` -> report
                                                  (explore, judge, train, export, evaluate)

Everything lies in WORKDIR/round-1; both policies answer the validation questions and the test
questions. Running the command again goes on where it stopped.

With several methods or seeds all runs train on the branches of that round for the same number of
optimizer steps, each in WORKDIR/round-1/runs/METHOD-SEED.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from srpo_jax.cli.rounds.stages import Round, answers_name, evaluate_policy
from srpo_jax.cli.rounds.walk import run_rounds, with_records
from srpo_jax.cli.validation.evaluators import make_evaluators
from srpo_jax.config.fields import Config
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import export
from srpo_jax.files import read_json
from srpo_jax.judge.judge import judge
from srpo_jax.keepers import place_of, remove_folder
from srpo_jax.runs.methods_table.collect import collect
from srpo_jax.runs.methods_table.formats import render
from srpo_jax.runs.report.page import write_report
from srpo_jax.runs.workdir import round_folder
from srpo_jax.train.loop import train

FIGURES = (  # of the last line
    *("safety_rate", "effectiveness_rate", "both_all", "path_safety_rate"),
    *("self_correction_rate", "late_failure_rate"),
)
Scores = Mapping[str, Any]
MakeConfig = Callable[[str], Config]  # variant name -> validated config


def main(
    make_config: MakeConfig,
    *,
    workdir: str | os.PathLike,
    methods: Sequence[str] = ("base", "srpo"),
    seeds: int = 1,
) -> int:
    """Runs the demo and returns the exit code.

    methods: of base, sft, orpo, dpo, srpo; "base" stands for the policy before training and is
    always evaluated. The last line printed is one JSON object with the figures.
    """
    start = time.monotonic()
    workdir = pathlib.Path(workdir)
    folder = round_folder(workdir, 1)
    trained = [method for method in methods if method != "base"]
    config = with_records(make_config(trained[0] if trained else "srpo"), workdir)
    splits = ["validation"] * bool(config.data.validation_records) + ["test"]
    alone = len(trained) == 1 and seeds == 1
    several = len(trained) * seeds * (2 + len(splits)) + 2 * bool(trained)
    stages = Stages(len(splits) + (4 + len(splits) if alone else several) + 1)

    scores: dict[str, list[dict[str, Scores]]] = {"base": [{}]}  # of each seed, by split
    for split in splits:
        stages.next(f"evaluate the base policy on {split} questions")
        own = of_split(config, split)
        name = answers_name(own, "before")
        evaluate(own, folder, name)
        scores["base"][0][split] = judge(own, folder, answers=name)
    if alone:
        exports = {trained[0]: folder / "export"}
        scores[trained[0]] = [one_round(config, workdir, splits, stages)]
    else:
        exports = {}
        for method, seed, run in all_runs(make_config, workdir, trained, seeds, splits, stages):
            exports[f"{method}-{seed}"] = run / "export"
            scores.setdefault(method, []).append(read_scores(config, run, splits))
    stages.next("report")
    report = write_report(folder)

    figures = {
        "seconds": round(time.monotonic() - start, 1),
        "seeds": seeds,
        **{
            "methods" if split == "test" else split: {
                method: {name: _figure([each[split] for each in own], name) for name in FIGURES}
                for method, own in scores.items()
            }
            for split in reversed(splits)
        },
    }
    print(f"\n{render(collect([folder]), 'terminal')}")
    for name, out in exports.items():
        print(f"export {name}: {out}")
    print(f"report: {report}")
    print(json.dumps(figures), flush=True)
    return 0


def one_round(
    config: Config, workdir: pathlib.Path, splits: Sequence[str], stages: Stages
) -> dict[str, Scores]:
    """A round of `srpo run`, and its policy's answers to what else there is to ask; the scores by
    split.
    """
    run_rounds(of_split(config, "test"), workdir, rounds=1, tell=stages.next)
    for split in splits:
        if split != "test":
            stages.next(f"evaluate the trained policy on {split} questions")
            evaluate_policy(Round.of(of_split(config, split), workdir, 1))
    return read_scores(config, round_folder(workdir, 1), splits)


def all_runs(
    make_config: MakeConfig,
    workdir: pathlib.Path,
    methods: Sequence[str],
    seeds: int,
    splits: Sequence[str],
    stages: Stages,
) -> Iterator[tuple[str, int, pathlib.Path]]:
    """Trains every method with every seed on the branches of one exploration, and evaluates it.
    Yields (method, seed, workdir of the run).
    """
    folder, trees = round_folder(workdir, 1), None
    for method in methods:
        config = with_records(make_config(method), workdir)
        if trees is None:
            stages.next("explore: branches from every prefix of the reference path")
            trees = explore(config, folder)
            stages.next("judge the branches")
            judge(config, folder)
        named = place_of(trees)  # on another host it is elsewhere
        config = replace(config, data=replace(config.data, trees=named))
        for seed in range(seeds):
            # The seed is of the order of questions; the branches are the same.
            own = replace(config, seed=config.seed + seed)
            run = folder / "runs" / f"{method}-{seed}"
            stages.next(f"train {method}, seed {own.seed}, {own.train.steps} steps")
            train(own, run, make_evaluators=make_evaluators)
            stages.next(f"export {method}")
            out = run / "export"
            if out.is_dir():  # of an earlier demo in this workdir
                remove_folder(out)
            export(run, out)
            for split in splits:
                stages.next(f"evaluate the exported {method} on {split} questions")
                # Answers are drawn by the config's seed: the same for every run.
                asked = of_split(config, split)
                evaluate(asked, run, answers_name(asked), model_dir=out)
                judge(asked, run, answers=answers_name(asked))
            yield method, seed, run


def of_split(config: Config, split: str) -> Config:
    """The config by which the questions of this split are answered."""
    return replace(config, eval=replace(config.eval, split=split))


def read_scores(config: Config, run: pathlib.Path, splits: Sequence[str]) -> dict[str, Scores]:
    """The scores of a run's trained policy, by split."""
    names = {split: answers_name(of_split(config, split)) for split in splits}
    return {split: read_json(run / "eval" / names[split] / "scores.json") for split in splits}


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
