"""SSUI-mini in the protocol: every run is explore, judge, train, export and eval as `srpo` does.

Two minutes a run and more. Branches that methods share are sampled once for a cell and a seed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.data_pipelines.ssui_mini.dataset import combination, make_records
from srpo_jax.data_pipelines.ssui_mini.options import Options
from srpo_jax.data_pipelines.ssui_mini.reasoning_paths import NUM_DECISIONS, path_in_states
from srpo_jax.data_pipelines.ssui_mini.world import REQUESTS, SCENES
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import find_set
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import export
from srpo_jax.files import read_lines
from srpo_jax.judge.judge import judge
from srpo_jax.judge.results.rates import BY_NAME, by_question, hits, judged_parts
from srpo_jax.train.loop import train
from studies.method.protocol import Method, Outcome, Setting

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "ssui_mini.py"
STEPS, QUESTIONS_A_STEP, SAMPLES = 60, 8, 4
RECOVERED = {"recovered_together": 3, "recovered_late": 5}  # steps of a path that is all calm
RATES = (2e-4, 4e-4)


@dataclasses.dataclass(frozen=True)
class Cell:
    """See micro.recipes.Cell; the first number of pictures that `questions` come from is drawn by
    seed."""

    questions: int = 64
    references: float = 1.0
    wrong: float = 0.0


def _grid(**changes: Any) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = [{"train.learning_rate": rate} for rate in RATES]
    for name, value in changes.items():
        values = value if isinstance(value, list) else [value]
        found = [{**setting, name: each} for setting in found for each in values]
    return tuple(found)


# "explore": which branches, see _explored; all other names are fields of the config.
METHODS = {
    method.name: method
    for method in (
        Method("base", "the policy before training", ({},)),
        Method(
            "sft filtered",
            "the references that the arbiter passes",
            _grid(explore="references", **{"objective.lambda_exp": 0.0}),
        ),
        Method(
            "rft",
            "those, and an own passed path of the questions without one",
            _grid(explore="own references", **{"objective.lambda_exp": 0.0}),
        ),
        Method(
            "orpo",
            "rft, and odds ratios of 24 whole paths",
            _grid(
                explore="paths",
                **{"objective.branch_points": "first", "objective.lambda_exp": 0.1},
            ),
        ),
        Method(
            "srpo",
            "references, and 4 branches from each of their prefixes",
            _grid(explore="branches", **{"objective.lambda_exp": 0.1}),
        ),
        Method(
            "srpo own",
            "rft, and 4 branches from each prefix of references and own passed paths",
            _grid(explore="own branches", **{"objective.lambda_exp": 0.1}),
        ),
        Method(
            "branches taught",
            "the same branches, the safe ones by L_ref, no contrast",
            _grid(
                explore="own branches",
                **{"objective.lambda_exp": 0.0, "objective.branch_coef": 1.0},
            ),
        ),
    )
}
EXPLORE: Mapping[str, tuple[bool, dict[str, Any]]] = {  # (references alone, fields of explore)
    "references": (True, {"reference": "dataset"}),
    "own references": (True, {"reference": "missing"}),
    "paths": (False, {"reference": "missing", "branch_points": "first", "branches": 24}),
    "branches": (False, {"reference": "dataset"}),
    "own branches": (False, {"reference": "missing"}),
}


class Mini:
    """name, methods, cells, run: see protocol.World. folder: keeps what runs leave behind."""

    name = "mini"
    methods = METHODS
    cells = {
        "scarce": Cell(references=0.25),
        "all": Cell(),
        "wrong": Cell(wrong=0.3),
    }

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "work"

    def run(
        self, setting: Setting, cell: Any, seed: int, splits: tuple[str, ...]
    ) -> dict[str, Outcome]:
        place = self.folder / f"{_name(cell)}-{seed}"
        config = _config(place, cell, seed)
        changes = dict(setting)
        kind = changes.pop("explore", None)
        model = pathlib.Path(config.model.path)
        scratch = place / "run"
        shutil.rmtree(scratch, ignore_errors=True)
        if kind:
            trees = str(_explored(config, place, kind))
            train(_changed(config, {**changes, "data.trees": trees}), scratch)
            model = scratch / "export"
            export(scratch, model)
        return {split: _outcome(config, place, scratch / split, model, split) for split in splits}


def _name(cell: Cell) -> str:
    return f"{cell.questions}-{cell.references:g}-{cell.wrong:g}"


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """With fields set, named as on the command line: section.name."""
    for name, value in changes.items():
        section, _, field = name.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    return config


def _config(place: pathlib.Path, cell: Cell, seed: int) -> Config:
    """Of the cell and seed, with its records drawn: as many risky as benign training questions, of
    which the first share has references, and the validation and test questions."""
    config = replace(as_config(load_config(str(CONFIG))), seed=seed)
    files = {split: place / "data" / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if not files["train"].exists():
        options = Options(seed=seed, wrong=cell.wrong)
        for split in ("validation", "test"):
            _write(list(make_records(split, range(1), Options(seed=seed))), files[split])
        drawn = list(make_records("train", range(2), options))
        rng = np.random.default_rng(seed)
        half = cell.questions // 2
        chosen = []
        for risky in (True, False):
            side = [(r, picture) for r, picture in drawn if r.risky == risky]
            few = [side[i] for i in rng.permutation(len(side))[:half]]
            known = round(half * cell.references)
            chosen += few[:known]
            chosen += [(replace(r, steps=(), reply=""), picture) for r, picture in few[known:]]
        _write([each for each in chosen if each[0].steps], _known(files["train"]))
        _write(chosen, files["train"])
    return _changed(
        config,
        {
            **{f"data.{split}_records": str(path) for split, path in files.items()},
            "explore.num_questions": 0,
            "pack.questions": QUESTIONS_A_STEP,
            "train.steps": STEPS,
            "train.warmup_steps": 5,
            "train.save_every": STEPS,
            "arbiter.filter_references": cell.wrong > 0,
            "arbiter.max_error_fraction": 1.0,  # what cannot be read is neither safe nor of use
            "eval.temperature": 1.0,
            "eval.samples": SAMPLES,
            "eval.every": 0,
        },
    )


def _known(path: pathlib.Path) -> pathlib.Path:
    """Beside a file of records: those that have a reference path."""
    return path.with_name(f"{path.stem}-known.jsonl")


def _write(drawn: list[tuple[Record, Any]], path: pathlib.Path) -> None:
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    for record, picture in drawn:
        picture.save(path.parent / record.images[0], format="PNG")
    write_records([record for record, _ in drawn], path)


def _explored(config: Config, place: pathlib.Path, kind: str) -> pathlib.Path:
    """The judged trees of a kind, made once for a cell and a seed."""
    alone, fields = EXPLORE[kind]
    workdir = place / kind.replace(" ", "_")
    changes = {f"explore.{name}": value for name, value in fields.items()}
    if fields["reference"] == "dataset":
        changes["data.train_records"] = str(_known(pathlib.Path(config.data.train_records)))
    config = _changed(config, changes)
    trees = explore(
        config,
        workdir,
        references_only=alone,
        judge_roots=lambda: judge(config, workdir),
    )
    judge(config, workdir)
    return trees


def _outcome(
    config: Config, place: pathlib.Path, workdir: pathlib.Path, model: pathlib.Path, split: str
) -> dict[str, Any]:
    """What a policy answers to a split, see micro.run.outcome; recoveries: see _recovered."""
    config = _changed(config, {"eval.split": split})
    evaluate(config, workdir, "after", model_dir=model)
    judge(config, workdir, answers="after")
    lines = read_lines(workdir / "eval" / "after" / "generations.jsonl")
    rows = by_question(judged_parts(lines))
    scene, request = (
        {each.id: number for number, each in enumerate(kind)} for kind in (SCENES, REQUESTS)
    )
    records = {r.id: r for r in read_records(place / "data" / f"{split}.jsonl")}
    found: dict[str, Any] = {"samples": SAMPLES}
    for side, risky in (("risky", True), ("benign", False)):
        names = [name for name, record in records.items() if record.risky == risky]
        own = {name: rows[name] for name in names}
        found[side] = [
            [scene[records[n].meta["scene"]], request[records[n].meta["request"]]] for n in names
        ]
        wanted = {"safe": "safety_rate", "safe_useful": "both_risky", "path": "path_safety_rate"}
        for key, rate in wanted.items() if risky else [("effective", "effectiveness_rate")]:
            of = hits(BY_NAME[rate], own)
            found[key] = [sum(of.get(name, [])) for name in names]
    return {**found, **_recovered(config, place, workdir, model, split)}


def _recovered(
    config: Config, place: pathlib.Path, workdir: pathlib.Path, model: pathlib.Path, split: str
) -> dict[str, Any]:
    """Of 4 answers to each risky question that begin as if nothing were wrong, for so many steps:
    how many end safe. These are branches of trees whose reference path is calm throughout.
    """
    path = place / "data" / f"{split}-calm.jsonl"
    if not path.exists():
        drawn = list(make_records(split, range(1), Options(seed=config.seed)))
        calm = []
        for record, picture in drawn:
            if record.risky:
                steps, reply = path_in_states(*combination(record), [False] * NUM_DECISIONS)
                calm.append((replace(record, steps=tuple(steps), reply=reply), picture))
        _write(calm, path)
    config = _changed(
        config,
        {
            "data.train_records": str(path),
            "explore.reference": "dataset",
            "explore.branch_points": "all",
            "explore.branches": 4,
            "explore.max_points": 0,
        },
    )
    folder = workdir / "recovery"
    trees = explore(config, folder, model_dir=model)
    judge(config, folder)
    verdicts = find_set(trees)
    order = [r.id for r in read_records(place / "data" / f"{split}.jsonl") if r.risky]
    counts = {name: dict.fromkeys(order, 0) for name in RECOVERED}
    for tree in read_shards(trees):
        for branch in tree["branches"]:
            for name, at in RECOVERED.items():
                if branch["at"] == at:
                    good = verdicts.branch_verdict(tree, branch)
                    counts[name][tree["id"]] += good["reply_verdict"] == "SAFE"
    return {name: [count[n] for n in order] for name, count in counts.items()}
