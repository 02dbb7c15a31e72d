"""`srpo report WORKDIR`: one HTML file that tells what a run did and needs nothing else.

No request leaves the page (a content security policy in it forbids any), no script runs in it,
pictures are inside as data. What a run does not have yet is left out with a line that says so.
The files of this folder compute what is shown; templates/page.html is where the markup begins.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax import __version__
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import FOLDER, JudgedTrees, VerdictSet, set_names
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, read_lines, write_text
from srpo_jax.runs.report import scores as report_scores
from srpo_jax.runs.report.answers import answer_card, choose_answers
from srpo_jax.runs.report.charts import charts
from srpo_jax.runs.report.goodput import goodput_table
from srpo_jax.runs.report.markup import fill
from srpo_jax.runs.report.trees import as_judged, choose_trees, tree_card
from srpo_jax.runs.workdir import (
    AFTER,
    BEFORE,
    method,
    read_config,
    read_evaluations,
    read_runs,
    record_folders,
    shown_run,
    trees_folder,
)


def write_report(workdir: str | os.PathLike, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Writes the page (default WORKDIR/report.html), atomically, and returns its path.

    Errors: UserError when the folder has nothing of a run, or a file of it cannot be read.
    """
    workdir = pathlib.Path(workdir)
    page = render(workdir)
    path = pathlib.Path(out) if out else workdir / "report.html"
    write_text(path, page)
    return path


def render(workdir: pathlib.Path) -> str:
    """The page as text. Errors: UserError."""
    if not workdir.is_dir():
        raise UserError(f"workdir {workdir} does not exist")
    home = shown_run(workdir)
    config = read_config(home)
    evaluations = {**read_evaluations(workdir), **read_evaluations(home)}
    runs = read_runs(workdir)
    metrics = read_lines(home / "metrics.jsonl")
    trees = trees_folder(workdir, config)
    if not (config or evaluations or metrics or trees):
        raise UserError(
            f"{workdir} holds nothing of a run (no config.json, trees, metrics.jsonl or eval)"
        )
    before, after = _pair(list(evaluations))
    folders = (home, workdir)
    roots = [root for folder in folders for root in record_folders(folder, config)]
    return fill(
        "page.html",
        name=(config.get("name") if home == workdir else None) or workdir.resolve().name,
        subtitle=_subtitle(config, metrics, runs),
        version=__version__,
        tiles=report_scores.tiles(evaluations.get(before or ""), evaluations[after])
        if after
        else None,
        results=_results(evaluations, before, after, runs, home.name),
        charts=charts(metrics),
        goodput=goodput_table(home),
        exploration=_exploration(trees, _trained_on(home)),
        answers=_answers(folders, roots, before, after),
        settings=_settings(config),
    )


def _trained_on(home: pathlib.Path) -> str:
    """The verdict set of a run, "" when it has none."""
    path = home / "config.json"
    facts = (read_json(path).get("data") or {}) if path.is_file() else {}
    return (facts.get("verdicts") or {}).get("set", "")


def _subtitle(config: Mapping[str, Any], metrics: list[dict], runs: Mapping[str, list]) -> str:
    if not config:
        return "no training run here yet"
    parts = [method(config)]
    if runs:
        parts = [f"{', '.join(runs)} on the same trees; shown below: {config.get('name')}"]
    if metrics and isinstance(metrics[-1].get("step"), int):
        parts.append(f"{metrics[-1]['step']} steps")
    parts.append(f"seed {config.get('seed')}")
    return " · ".join(parts)


def _results(
    evaluations: dict[str, dict],
    before: str | None,
    after: str | None,
    runs: dict[str, list[dict]],
    shown: str,
) -> dict[str, Any] | None:
    """What templates/results.html shows, None without an evaluation. shown: name of the run."""
    if not evaluations:
        return None
    base, last = evaluations.get(before or ""), evaluations[after] if after else None
    pair = [name for name in (before, after) if name]
    return {
        "methods": report_scores.methods(base, runs) if runs else None,
        "run": shown,
        "table": report_scores.table(evaluations, before, after),
        "confusions": [report_scores.confusion(name, evaluations[name]) for name in pair],
        "categories": report_scores.categories(base, last) if last else None,
    }


def _exploration(folder: pathlib.Path | None, chosen_set: str) -> dict[str, Any] | None:
    """What templates/trees.html shows, None without trees. chosen_set: the verdict set that the run
    trained on, "" when it says none.
    """
    if folder is None:
        return None
    names = set_names(folder)
    name = chosen_set if chosen_set in names else next(iter(names), "")
    verdicts = VerdictSet(folder.parent / FOLDER / name) if name else None
    source = read_shards(folder)
    trees = source if verdicts is None else JudgedTrees(source, verdicts)
    chosen = choose_trees(as_judged(trees[i]) for i in range(len(source)))
    return {
        "judge": None if verdicts is None else f"{verdicts.judge['arbiter']}, set {name}",
        "others": [other for other in names if other != name],
        "points": [] if verdicts is None else _points(verdicts.folder),
        "total": len(source),
        "cards": [tree_card(tree, i) for i, tree in enumerate(chosen)],
    }


def _points(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Per branch point {"where", "parts": [(safe, unsafe or error, branches, share)], "with_pair",
    "questions"}: shares in percent of the branches that leave there. folder: of a verdict set.
    """
    path = folder / "summary.json"
    points = read_json(path).get("points") if path.is_file() else None
    if not isinstance(points, list):
        return []
    return [
        {
            "where": f"after step {point['at']}" if point["at"] else "from the question",
            "parts": [
                (kind, point[kind], 100 * point[kind] / (point["branches"] or 1))
                for kind in ("safe", "unsafe", "error")
                if point[kind]
            ],
            "with_pair": point["with_pair"],
            "questions": point["questions"],
        }
        for point in points
    ]


def _answers(
    folders: Sequence[pathlib.Path],
    roots: list[pathlib.Path],
    before: str | None,
    after: str | None,
) -> dict[str, Any] | None:
    """What templates/answers.html shows, None without generations."""
    rows = _generations(folders, after)
    if after is None or not rows:
        return None
    old = _generations(folders, before) or None
    names = (before or "", after)
    cards = [
        answer_card(then, now, _find_image(now.get("image"), roots), names)
        for then, now in choose_answers(old, rows)
    ]
    return {"compared": bool(old), "cards": cards}


def _generations(folders: Sequence[pathlib.Path], name: str | None) -> list[dict]:
    paths = [folder / "eval" / name / "generations.jsonl" for folder in folders if name]
    return next((rows for rows in map(read_lines, paths) if rows), [])


def _find_image(name: Any, roots: list[pathlib.Path]) -> pathlib.Path | None:
    """The picture of a generation, below one of the roots; a missing one keeps its own name."""
    if not isinstance(name, str) or not name:
        return None
    for root in roots:
        path = root / name
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            return path
    return pathlib.Path(pathlib.Path(name).name)


def _settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What templates/settings.html shows, None without a config."""
    if not config:
        return None
    data, model = config.get("data") or {}, config.get("model") or {}
    facts = (
        ("model", model.get("path")),
        ("training records", data.get("train_records")),
        ("test records", data.get("test_records")),
        ("method", method(config)),
        ("arbiter", (config.get("arbiter") or {}).get("kind")),
    )
    return {
        "facts": [(name, value) for name, value in facts if value],
        "fields": [(name, json.dumps(value)) for name, value in _flat(config)],
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in config.items():
        inner = isinstance(value, Mapping)
        rows += _flat(value, f"{prefix}{key}.") if inner else [(prefix + key, value)]
    return rows


def _pair(names: list[str]) -> tuple[str | None, str | None]:
    """Which evaluation is "before" and which "after"; with one alone that one is "after"."""
    before = next((name for name in BEFORE if name in names), None)
    rest = [name for name in names if name != before]
    after = next((name for name in AFTER if name in rest), rest[-1] if rest else None)
    return (before, after) if after else (None, before)
