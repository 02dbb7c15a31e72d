"""The tables as text: methods against benchmarks, and each method against the base policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from srpo_jax.judge.results.changes import (
    Tested,
    adjusted,
    changes,
    detectable_text,
    metric_changes,
    p_text,
)
from srpo_jax.judge.results.scores import nothing_judged
from srpo_jax.judge.roles import OWN_TEACHER
from srpo_jax.runs.judge_facts import HEX, judge_line
from srpo_jax.runs.methods_table.cells import Cell, cell, label, metrics
from srpo_jax.runs.methods_table.collect import (
    UNKNOWN,
    Collected,
    Column,
    Evaluation,
    Method,
    base_model,
)
from srpo_jax.runs.workdir import asked

MARK = "*"  # behind what was judged by its own teacher


class Table(NamedTuple):
    """title: what it is of. head: of the columns; the first is that of the names of rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


class Against(NamedTuple):
    """A method against the base policy, in one column and one rate."""

    method: Method
    column: Column
    tested: Tested


class Page(NamedTuple):
    """All that is written down. facts: (name, value) for the head. tables: one of each benchmark.
    notes: sentences below. changes: against base policies, where they have the same questions.
    """

    facts: list[tuple[str, str]]
    tables: list[Table]
    notes: list[str]
    changes: list[Tested]


def build(collected: Collected) -> Page:
    """Everything that `srpo table` shows."""
    names = _titles(collected)
    tables = [_table(collected, column, names[column]) for column in collected.columns]
    tested = [each.tested for each in compare_with_base(collected)]
    notes = [
        "Each cell: percent, its 95 % interval, k/n. Of several seeds: mean, standard deviation, "
        "and an interval that is never narrower than that of one seed."
    ]
    if any(row.own_teacher(column) for row in collected.methods for column in collected.columns):
        notes.append(
            f"{MARK} {OWN_TEACHER}: that judge also labelled what the method was trained on, or "
            "chose the answers among several, so the score says less than another judge's and is "
            "no headline."
        )
    if not tested and len(collected.methods) > 1:
        notes.append(
            "Nothing was tested: that takes a base policy and answers to the same questions."
        )
    dead = [str(each.folder) for each in collected.evaluations if nothing_judged(each.scores)]
    if dead:
        notes.append(f"Nothing was judged in {', '.join(dead)}: no figure says anything of it.")
    if collected.left_out:
        notes.append(f"Left out, as not judged yet: {', '.join(collected.left_out)}.")
    return Page(_facts(collected, names), tables, notes, tested)


def _titles(collected: Collected) -> dict[Column, str]:
    """A name for each column; with a letter where a benchmark has several."""
    found = {}
    for column in collected.columns:
        same = [other for other in collected.columns if other.benchmark == column.benchmark]
        letter = f" ({'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[same.index(column) % 26]})" if same[1:] else ""
        found[column] = f"{column.benchmark}{letter}"
    return found


def _table(collected: Collected, column: Column, title: str) -> Table:
    shown = metrics(collected, column)
    rows = []
    for row in collected.methods:
        own = row.cells.get(column)
        if own:
            cells = [cell_text(cell(own, metric)) for metric in shown]
            rows.append([row_name(row, column), *cells])
    return Table(f"{title}, {column.questions} questions", ["", *map(label, shown)], rows)


def row_name(row: Method, column: Column) -> str:
    """With its seeds, and the mark of what was judged by its own teacher."""
    seeds = len(row.cells.get(column, []))
    more = f", {seeds} seeds" if seeds > 1 else ""
    return f"{row.name}{more}{MARK if row.own_teacher(column) else ''}"


def cell_text(found: Cell | None) -> str:
    """75.0 ± 2.1 [30.1, 95.4] 3/4"""
    if found is None:
        return "-"
    text = f"{found.value:.1f}" + ("" if found.spread is None else f" ± {found.spread:.1f}")
    if found.low is not None:
        text += f" [{found.low:.1f}, {found.high:.1f}]"
    return text + (f" {found.k}/{found.n}" if found.n else "")


def compare_with_base(collected: Collected) -> list[Against]:
    """Every method against its base policy, on each benchmark where both have their answers; the
    seeds of a method are answers to the same questions. All are adjusted together.
    """
    places, found = [], []
    names = _titles(collected)
    for row in collected.methods:
        base = collected.base_of(row)
        for column in collected.columns:
            if base and column in row.cells and column in base.cells:
                what = f"{row_name(row, column)} against {base.name}, {names[column]}"
                own = _changes(base.cells[column][0], row.cells[column], what)
                places += [(row, column)] * len(own)
                found += own
    tested = zip(places, adjusted(found), strict=True)
    return [Against(row, column, each) for (row, column), each in tested]


def _changes(base: Evaluation, seeds: Sequence[Evaluation], what: str) -> list[Tested]:
    """Of what its benchmark says is tested, else of the rates that all evaluations have."""
    if found := metric_changes(base.hits(), [each.hits() for each in seeds], what):
        return found
    before, after = base.rows(), [row for each in seeds for row in each.rows()]
    return changes(before, after, what) if before and after else []


def changes_table(tested: Sequence[Tested]) -> Table:
    """One row for each tested rate."""
    head = ["", "before", "after", "change", "95 % interval", "better, worse of n", "p", "Holm"]
    rows = []
    for each in tested:
        c = each.change
        between = f"{c.low:+.1f} to {c.high:+.1f}" if c.low is not None else "-"
        ways = f"{c.gained}, {c.lost} of {c.questions}"
        values = [f"{c.before:.1f}", f"{c.after:.1f}", f"{c.change:+.1f}", between, ways]
        name = f"{each.what}: {each.label}" if each.what else each.label
        rows.append([name, *values, p_text(c.p_value), p_text(each.holm), detectable_text(c)])
    return Table("Changes", [*head, "detects"], rows)


def _facts(collected: Collected, names: dict[Column, str]) -> list[tuple[str, str]]:
    """Base model, date, data and judges."""
    models = dict.fromkeys(map(base_model, collected.evaluations))
    named = [name for name in models if name != UNKNOWN] or [UNKNOWN]
    facts = [
        ("base model", ", ".join(named)),
        ("date", f"{collected.last_day()} (the newest scores)"),
    ]
    for row in collected.methods:
        if row.trained and (said := _trained_on(row)):
            facts.append((f"{row.name}, trained on", said))
        facts += [(f"{row.name}, chosen by", said) for said in _chosen_by(row)]
    for column, title in names.items():
        records = f", records {column.records[:HEX]}" if column.records else ""
        facts.append((title, f"{column.questions} questions{records}, judge {column.judge[:HEX]}"))
    judges = {
        str(each.scores["judge"]["digest"]): each.scores["judge"]
        for each in collected.evaluations
        if each.scores.get("judge")
    }
    facts += [(f"judge {digest[:HEX]}", judge_line(judge)) for digest, judge in judges.items()]
    return facts


def _chosen_by(row: Method) -> list[str]:
    """Who chose the answers among how many, where somebody did."""
    found = {}
    for each in row.evaluations:
        if chosen := each.scores.get("chosen"):
            judge, count = chosen.get("judge") or {}, asked(each.scores)[2]
            digest = str(judge.get("digest"))[:HEX]
            found[f"{judge.get('arbiter')}, digest {digest}, best of {count}"] = None
    return list(found)


def _trained_on(row: Method) -> str:
    facts: Any = row.evaluations[0].facts
    if not facts:
        return ""
    parts = [f"{facts[name]} {name}" for name in ("questions", "pairs") if name in facts]
    if judge := facts.get("verdicts"):
        parts.append(f"verdicts of {judge.get('arbiter')}, digest {str(judge.get('digest'))[:HEX]}")
    return ", ".join(parts)
