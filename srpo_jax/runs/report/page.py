"""`srpo report WORKDIR`: one HTML file that tells what a run did and needs nothing else.

No request leaves the page (a content security policy in it forbids any), no script runs in it,
pictures are inside as data. What a run does not have yet is left out with a line that says so.
The files of this folder compute what is shown; templates/page.html is where the markup begins.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax import __version__
from srpo_jax.errors import UserError
from srpo_jax.files import check_folder, read_lines, write_text
from srpo_jax.judge.results.changes import Tested, adjusted, changes, reading
from srpo_jax.judge.results.scores import chosen_options, nothing_judged
from srpo_jax.runs.goodput import goodput_table
from srpo_jax.runs.judge_facts import judge_facts, judge_line, same_judge
from srpo_jax.runs.methods_table.build import build, changes_table
from srpo_jax.runs.methods_table.collect import collect
from srpo_jax.runs.report import scores as report_scores
from srpo_jax.runs.report.answers import answer_card, choose_answers
from srpo_jax.runs.report.charts import charts
from srpo_jax.runs.report.cost import cost_table
from srpo_jax.runs.report.exploration import exploration, status_line
from srpo_jax.runs.report.failures import failure_list
from srpo_jax.runs.report.lost_safety import lost_safety
from srpo_jax.runs.report.markup import fill
from srpo_jax.runs.report.pictures import find_image, picture
from srpo_jax.runs.workdir import (
    AFTER,
    BEFORE,
    method,
    read_config,
    read_evaluations,
    read_facts,
    read_runs,
    readable,
    record_folders,
    round_folders,
    run_name,
    shown_run,
    trees_folder,
    unscored,
)


def write_report(workdir: str | os.PathLike, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Writes the page (default WORKDIR/report.html), atomically, and returns its path.

    Errors: UserError when the folder has nothing of a run, a file of it cannot be read, or `out` is
    no place for a file.
    """
    workdir = pathlib.Path(workdir)
    path = pathlib.Path(out) if out else workdir / "report.html"
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, as --out={path / 'report.html'}")
    check_folder(path.parent)
    page = render(workdir)
    write_text(path, page)
    return path


def render(workdir: pathlib.Path) -> str:
    """The page as text; of a run of rounds that of its last one. Errors: UserError."""
    if not workdir.is_dir():
        raise UserError(f"workdir {workdir} does not exist")
    workdir = [workdir, *round_folders(workdir)][-1]  # of a run of rounds the last one
    home = shown_run(workdir)
    with readable(workdir):
        return _render(workdir, home, read_config(home), read_facts(home))


def _render(
    workdir: pathlib.Path, home: pathlib.Path, config: Mapping[str, Any], facts: Mapping[str, Any]
) -> str:
    evaluations = {**read_evaluations(workdir), **read_evaluations(home)}
    runs = read_runs(workdir)
    metrics = read_lines(home / "metrics.jsonl")
    trees = trees_folder(workdir, config)
    answered = sorted({*unscored(workdir), *unscored(home)} - evaluations.keys())
    if not (config or evaluations or metrics or trees or answered):
        raise UserError(
            f"{workdir} holds nothing of a run (no config.json, trees, metrics.jsonl or eval)"
        )
    written = {name: s for name, s in evaluations.items() if not chosen_options(s)} or evaluations
    before, after = _pair(list(written))
    folders = (home, workdir)
    roots = [root for folder in folders for root in record_folders(folder, config)]
    with readable(workdir / "eval" / "*" / "generations.jsonl"):
        generations = {name: _generations(folders, name) for name in evaluations}
        tested = _tested(evaluations, generations, before, after)
    with readable(workdir / "eval" / "*" / "scores.json"):
        shown = _results(written, before, after, tested, facts.get("verdicts"))
        results = shown and {**shown, "run": home.name, **_methods(workdir, evaluations, runs)}
    with readable(home / "metrics.jsonl"):
        curves = charts(metrics)
    with readable(workdir / "verdicts" / "*" / "{judge,summary}.json"):
        explored = exploration(trees, config, facts)
        wanted = (facts.get("verdicts") or {}).get("set", "")
        alike = same_judge(*(evaluations[name].get("judge") for name in (before, after) if name))
        pair = (before if alike else None, after)
        lost = lost_safety(workdir, trees, config, wanted, generations, pair)
    with readable(workdir / "usage.jsonl"):
        places = [*folders, *([trees.parent] if trees else []), *workdir.glob("runs/*")]
        cost = cost_table(places)
    with readable(workdir / "eval" / "*" / "generations.jsonl"):
        answers = _answers(generations, roots, before, after)
        failures = failure_list(_of_policy(evaluations, generations, after), before, roots)
    return fill(
        "page.html",
        name=(run_name(config) if home == workdir else "") or workdir.resolve().name,
        subtitle=_subtitle(config, facts, metrics, runs),
        version=__version__,
        tiles=results and results["tiles"],
        results=results,
        answered=answered,
        charts=curves,
        goodput=goodput_table(home),
        exploration=explored,
        cost=cost,
        lost_safety=lost,
        answers=answers,
        failures=failures,
        settings=_settings(config, facts),
    )


def _subtitle(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    metrics: list[dict],
    runs: Mapping[str, list],
) -> str:
    if not config:
        return "no training run here yet"
    parts = [method(config, facts)]
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
    tested: Sequence[Tested] | None,
    training: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """What templates/results.html shows of one run, None without an evaluation. evaluations: of
    answers that were written, where there are any. tested: the changes from before to after.
    training: whose verdicts it was trained on.
    """
    if not evaluations:
        return None
    base, last = evaluations.get(before or ""), evaluations[after] if after else None
    alike = not base or not last or same_judge(base.get("judge"), last.get("judge"))
    then = base if alike else None  # scores of two judges are not a change
    pair = [name for name in (before, after) if name]
    large = report_scores.headline(evaluations, after, training) if after else None
    old = then if large == after else None  # another evaluation has other questions, or a judge
    return {
        "tiles": report_scores.tiles(old, evaluations[large]) if large else None,
        "large": large if large and len(evaluations) > 1 else "",
        "no_headline": after is not None and large is None,
        "nothing": [name for name, scores in evaluations.items() if nothing_judged(scores)],
        "table": report_scores.table(evaluations, tested, training),
        "reading": reading(tested) if tested else "",
        "missing": report_scores.missing(evaluations),
        "judges": report_scores.judges(evaluations),
        "training": judge_facts(training) if training else None,
        "warnings": report_scores.warnings(evaluations, training),
        "confusions": [report_scores.confusion(name, evaluations[name]) for name in pair],
        "categories": report_scores.categories(then, last) if last else None,
    }


def _methods(
    workdir: pathlib.Path, evaluations: Mapping[str, Mapping], runs: Mapping[str, list[dict]]
) -> dict[str, Any]:
    """{"methods": the table of `srpo table`, None for one run without benchmarks, "several":
    whether there are several runs, "alike": whether all scores are of one judge}.
    """
    measured = [*evaluations.values(), *(scores for seeds in runs.values() for scores in seeds)]
    alike = same_judge(*(scores.get("judge") for scores in measured))
    about = {"several": bool(runs), "alike": alike}
    if not runs and not any(each.get("metrics") for each in evaluations.values()):
        return {"methods": None, **about}
    found = build(collect([workdir]))
    tables = [*found.tables, *([changes_table(found.changes)] if found.changes else [])]
    notes = [*found.notes, *([reading(found.changes)] if found.changes else [])]
    return {"methods": found._replace(tables=tables, notes=notes), **about}


def _tested(
    evaluations: Mapping[str, Mapping],
    generations: Mapping[str, list[dict]],
    before: str | None,
    after: str | None,
) -> list[Tested] | None:
    """What changed between the two, on the same questions and by the same judge; None where they
    cannot be compared.
    """
    if not before or not after or not generations[before] or not generations[after]:
        return None
    if not same_judge(*(evaluations[name].get("judge") for name in (before, after))):
        return None
    return adjusted(changes(generations[before], generations[after]))


def _of_policy(
    evaluations: Mapping[str, Mapping], generations: Mapping[str, list[dict]], after: str | None
) -> dict[str, list[dict]]:
    """The answers of the policy that is shown, in all its evaluations; and those before."""
    policy = evaluations[after].get("policy_digest") if after else None
    return {
        name: rows
        for name, rows in generations.items()
        if name in (after, *BEFORE) or (policy and evaluations[name].get("policy_digest") == policy)
    }


def _answers(
    generations: Mapping[str, list[dict]],
    roots: list[pathlib.Path],
    before: str | None,
    after: str | None,
) -> dict[str, Any] | None:
    """What templates/answers.html shows, None without generations."""
    if after is None or not generations[after]:
        return None
    rows, old = generations[after], generations[before] if before else []
    names = (before or "", after)
    cards = [
        answer_card(then, now, picture(find_image(now.get("image"), roots)), names)
        for then, now in choose_answers(old or None, rows)
    ]
    statuses = [
        (name, status_line(Counter(row.get("status") or "ok" for row in found)))
        for name, found in zip(names, (old, rows))
        if found
    ]
    return {"compared": bool(old), "cards": cards, "statuses": statuses}


def _generations(folders: Sequence[pathlib.Path], name: str) -> list[dict]:
    paths = [folder / "eval" / name / "generations.jsonl" for folder in folders]
    return next((rows for rows in map(read_lines, paths) if rows), [])


def _settings(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What templates/settings.html shows, None without a config."""
    if not config:
        return None
    data, model = config.get("data") or {}, config.get("model") or {}
    shown = (
        ("model", model.get("path")),
        ("training records", data.get("train_records")),
        ("test records", data.get("test_records")),
        ("method", method(config, facts)),
        ("whose verdicts it was trained on", _judge(facts)),
    )
    return {
        "facts": [(name, value) for name, value in shown if value],
        "fields": [(name, json.dumps(value)) for name, value in _flat(config)],
    }


def _judge(facts: Mapping[str, Any]) -> str:
    if judge := facts.get("verdicts"):
        return judge_line(judge)
    return "not recorded" if facts.get("pairs", 1) else "none: nothing was compared"


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
