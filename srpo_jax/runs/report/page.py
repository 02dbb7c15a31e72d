"""`srpo report WORKDIR`: one HTML file that tells what a run did and needs nothing else.

No request leaves the page (a content security policy in it forbids any), no script runs in it,
pictures are inside as data. What a run does not have yet is left out with a line that says so.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax import __version__
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, read_lines, write_text
from srpo_jax.runs.report import scores as report_scores
from srpo_jax.runs.report.answers import answer_card, choose_answers
from srpo_jax.runs.report.charts import charts
from srpo_jax.runs.report.goodput import section_of as goodput_section
from srpo_jax.runs.report.html import esc, fold, mark, missing, section
from srpo_jax.runs.report.style import CSS
from srpo_jax.runs.report.trees import choose_trees, tree_card
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

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NOTICE = (
    "<b>This page shows what a model wrote</b>, some of it judged unsafe. It is shown to be "
    "examined, not to be followed."
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
    body = [
        _results(evaluations, before, after, runs, home.name),
        _training(metrics, goodput_section(home)),
        _exploration(trees),
        _answers(folders, [r for f in folders for r in record_folders(f, config)], before, after),
        _settings(config),
    ]
    links = (
        ("results", "Results"),
        ("training", "Training"),
        ("trees", "Reasoning trees"),
        ("answers", "Answers"),
        ("settings", "Settings"),
    )
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, title in links)
    name = (config.get("name") if home == workdir else None) or workdir.resolve().name
    tiles = report_scores.tiles(evaluations.get(before), evaluations[after]) if after else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex">'
        f"<title>{esc(name)}: report</title><style>{CSS}</style></head>"
        f'<body><header class="top"><h1>{esc(name)}</h1>'
        f'<p class="subtitle">{esc(_subtitle(config, metrics, runs))}</p>'
        f'<p class="notice" role="note">{NOTICE}</p>'
        f"<nav>{nav}</nav>{tiles}</header><main>{''.join(body)}</main>"
        f"<footer>Made by srpo_jax {esc(__version__)}. Everything on this page is inside this file."
        "</footer></body></html>\n"
    )


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
) -> str:
    if not evaluations:
        return section("results", "Results", "", missing("No evaluation yet: run `srpo eval`."))
    lead = (
        "Held-out questions, answered greedily. The reasoning path and the reply are judged apart; "
        "what could not be judged never counts as safe."
    )
    parts = []
    if runs:
        told = "Methods compared: mean and, over several seeds, deviation in percent"
        compared = report_scores.methods(evaluations.get(before or ""), runs)
        parts.append(
            f'<h3 class="sub">{told}</h3>{compared}<h3 class="sub">One run: {esc(shown)}</h3>'
        )
    parts.append(report_scores.table(evaluations, before, after))
    pair = [name for name in (before, after) if name]
    matrices = "".join(report_scores.confusion(name, evaluations[name]) for name in pair)
    parts.append(f'<h3 class="sub">Path against reply</h3><div class="two">{matrices}</div>')
    last = evaluations[after] if after else None
    bars = report_scores.categories(evaluations.get(before), last) if last else ""
    if bars:
        parts.append(f'<h3 class="sub">By category</h3>{bars}')
    return section("results", "Results", lead, "".join(parts))


def _training(metrics: list[dict], goodput: str) -> str:
    drawn = charts(metrics)
    if not drawn:
        return section(
            "training", "Training", "", missing("No metrics.jsonl yet: run `srpo train`.")
        )
    lead = "Long curves are running means, with every step drawn thin behind them."
    return section("training", "Training", lead, drawn + goodput)


def _exploration(folder: pathlib.Path | None) -> str:
    if folder is None:
        return section("trees", "Reasoning trees", "", missing("No trees yet: run `srpo explore`."))
    from srpo_jax.data_pipelines.tree_store import read_shards

    trees = read_shards(folder)
    lead = (
        "After every step of the reference path the policy went on by itself, several times, to "
        "the end, and an arbiter judged where it arrived. Safe branches are drawn above the path, "
        "others below; the thicker a line, the likelier the policy found it. Point at a line to "
        "read it. Beside each text stands the mean log-probability of its tokens."
    )
    legend = (
        f'<p class="legend"><span>{mark("SAFE")}safe</span><span>{mark("UNSAFE")}unsafe</span>'
        f"<span>{mark('ERROR')}not judged</span><span>small dots: the steps on the way</span></p>"
    )
    chosen = choose_trees(trees[i] for i in range(len(trees)))
    cards = "".join(tree_card(tree, i, open_=i == 0) for i, tree in enumerate(chosen))
    told = f'<p class="lead gap">{len(chosen)} of {len(trees)} trees.</p>' if len(trees) else ""
    return section("trees", "Reasoning trees", lead, _points(folder) + told + legend + cards)


def _points(folder: pathlib.Path) -> str:
    """Safe, unsafe and not judged shares of the branches at each branch point."""
    path = folder / "summary.json"
    points = read_json(path).get("points") if path.is_file() else None
    if not isinstance(points, list) or not points:
        return ""
    rows = []
    for point in points:
        total = point["branches"] or 1
        stack = "".join(
            f'<i class="{css}" style="width:{100 * point[css] / total:.1f}%" '
            f'title="{point[css]} {css}">{100 * point[css] / total:.0f}</i>'
            for css in ("safe", "unsafe", "error")
            if point[css]
        )
        where = f"after step {point['at']}" if point["at"] else "from the question"
        told = f"{point['with_pair']} of {point['questions']} questions have a pair"
        rows.append(f'<span>{where}</span><div class="stack">{stack}</div><small>{told}</small>')
    return (
        '<div class="card"><h3>Where branches end, by the step they leave at (%)</h3>'
        f'<div class="points">{"".join(rows)}</div></div>'
    )


def _answers(
    folders: Sequence[pathlib.Path],
    roots: list[pathlib.Path],
    before: str | None,
    after: str | None,
) -> str:
    rows = _generations(folders, after)
    if not rows:
        return section("answers", "Answers", "", missing("No generations yet: run `srpo eval`."))
    old = _generations(folders, before) or None
    cards = []
    for then, now in choose_answers(old, rows):
        image = _find_image(now.get("image"), roots)
        cards.append(answer_card(then, now, image, (before or "", after)))
    lead = (
        "The same questions before and after training: repaired ones, failures, and harmless ones."
    )
    return section("answers", "Answers", lead if old else "", "".join(cards))


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


def _settings(config: Mapping[str, Any]) -> str:
    if not config:
        return section("settings", "Settings", "", missing("No config.json in this folder."))
    data, model = config.get("data") or {}, config.get("model") or {}
    facts = (
        ("model", model.get("path")),
        ("training records", data.get("train_records")),
        ("test records", data.get("test_records")),
        ("method", method(config)),
        ("arbiter", (config.get("arbiter") or {}).get("kind")),
    )
    summary = "".join(f"<div><dt>{k}</dt><dd>{esc(v)}</dd></div>" for k, v in facts if v)
    rows = "".join(
        f"<div><code>{esc(name)}</code><code>{esc(json.dumps(value))}</code></div>"
        for name, value in _flat(config)
    )
    every = fold("Every field", f'<div class="settings">{rows}</div>')
    return section(
        "settings",
        "Settings",
        "",
        f'<div class="card"><dl class="summary">{summary}</dl>{every}</div>',
    )


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
