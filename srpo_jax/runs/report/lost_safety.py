"""The report's section "Where safety is lost": the value of each prefix of the reference path, and
the step at which answers first fail, before training and after it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.data_pipelines.tree_schema import OldFormat
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import FOLDER, JudgedTrees, VerdictSet, set_names
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.lost_safety import ERROR, NO_STEP, first_failures, prefix_values
from srpo_jax.runs.judge_facts import same_judge
from srpo_jax.runs.workdir import next_round, trees_folder


class Judged(NamedTuple):
    """Whose branches these are, and what their prefixes are worth. name: the folder of the run
    whose trees they are; judge: what judge.json says.
    """

    name: str
    judge: Mapping[str, Any]
    values: Mapping[int, Rate]


def lost_safety(
    workdir: pathlib.Path,
    trees: pathlib.Path | None,
    config: Mapping[str, Any],
    wanted: str,
    generations: Mapping[str, Sequence[Mapping[str, Any]]],
    names: tuple[str | None, str | None],
) -> dict[str, Any] | None:
    """What templates/lost_safety.html shows; None where nothing is judged.

    trees: of the run. wanted: the verdict set that it was trained on, "" where that is not known.
    Branches of the policy after training are those of the round after, judged by the same judge.
    generations: {evaluation: rows}; names: the evaluations before and after.
    """
    then = _judged(workdir, trees, config, wanted)
    after = next_round(workdir)
    now = None
    if then and after:
        now = _judged(after, trees_folder(after, {}), config, "")
        if now and not same_judge(then.judge, now.judge):
            now = None
    sampled = ("before training", then), ("after it", now)
    values = {
        f"{when}, in {each.name}": each.values for when, each in sampled if each and each.values
    }
    shown = [name for name in names if name and generations.get(name)]
    failures = {name: first_failures(generations[name]) for name in shown}
    for place in (NO_STEP, ERROR):  # seldom
        if not any(found[place].k for found in failures.values() if found):
            failures = {
                name: {other: each for other, each in found.items() if other != place}
                for name, found in failures.items()
            }
    found = {"values": _bars(values, _where), "failures": _bars(failures, _step)}
    return found if any(found.values()) else None


def _judged(
    workdir: pathlib.Path, trees: pathlib.Path | None, config: Mapping[str, Any], wanted: str
) -> Judged | None:
    names = set_names(trees) if trees else []
    if not trees or not names:
        return None
    name = wanted if wanted in names else names[0]
    verdicts = VerdictSet(trees.parent / FOLDER / name)
    keep = (config.get("explore") or {}).get("irregular") == "keep"
    try:
        values = prefix_values(JudgedTrees(read_shards(trees), verdicts, keep_irregular=keep))
    except OldFormat:  # the section of trees says so
        return None
    return Judged(workdir.resolve().name, verdicts.judge, values)


def _bars(
    columns: Mapping[str, Mapping[Any, Rate]], name: Callable[[Any], str]
) -> dict[str, Any] | None:
    """What the macro `compared_bars` draws, None where no column has anything: {"keys": [(CSS
    class, title)], "rows": [(name of the place, [(CSS class, title, what is shown)])]}. The last
    column is the one that is looked at.
    """
    columns = {title: column for title, column in columns.items() if column}
    places = list(dict.fromkeys(place for column in columns.values() for place in column))
    steps = sorted(place for place in places if isinstance(place, int))
    places = [*steps, *(place for place in places if not isinstance(place, int))]
    keys = list(zip(("then", "now")[-len(columns) :], columns))
    rows = [
        (name(place), [(css, title, _shown(columns[title].get(place))) for css, title in keys])
        for place in places
    ]
    return {"keys": keys, "rows": rows} if rows else None


def _shown(found: Rate | None) -> dict[str, Any]:
    """As the macro `bar` takes it."""
    if found is None or found.value is None:
        return {"new": None}
    bounds = f"{found.low:.0f} to {found.high:.0f}"
    return {"new": found.value, "count": f"{found.k}/{found.n}", "bounds": bounds}


def _where(at: int) -> str:
    return f"after step {at}" if at else "from the question"


def _step(place: str | int) -> str:
    return f"step {place}" if isinstance(place, int) else place
