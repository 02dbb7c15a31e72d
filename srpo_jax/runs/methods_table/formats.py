"""The tables written for a terminal, in Markdown, in LaTeX, and as CSV."""

from __future__ import annotations

import csv
import io
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from srpo_jax.errors import one_line
from srpo_jax.judge.results.changes import format_changes, reading
from srpo_jax.runs.methods_table.build import Page, Table, build, changes_table, compare_with_base
from srpo_jax.runs.methods_table.cells import Cell, cell, metrics
from srpo_jax.runs.methods_table.collect import Collected, Column, base_model
from srpo_jax.runs.workdir import readable

COLUMNS = 120
NAME = 44  # columns for a name in a terminal
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>|#~]")
_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}


CHANGES = {
    "compared_questions": "questions",
    "change": "change",
    "change_low": "low",
    "change_high": "high",
    "gained": "gained",
    "lost": "lost",
    "p_value": "p_value",
    "detectable": "detectable",
}
CSV = [
    *("method", "base_model", "date", *Column._fields, "metric", *Cell._fields),
    *("judged_by_own_teacher", *CHANGES, "p_holm"),
]


def render(collected: Collected, form: str) -> str:
    """All tables in one of FORMATS, with a line end behind. Errors: UserError for files of a
    workdir that hold what no run writes.
    """
    with readable(pathlib.Path("WORKDIR", "eval", "*", "{scores.json,generations.jsonl}")):
        return FORMATS[form](collected)


def _terminal(collected: Collected) -> str:
    page = build(collected)
    lines = [line for name, value in page.facts for line in _wrapped(f"{name}: {value}")]
    for table in page.tables:
        lines += ["", one_line(table.title, COLUMNS), *_columns(table)]
    for note in page.notes:
        lines += ["", *textwrap.wrap(note, COLUMNS)]
    if page.changes:
        lines += ["", format_changes(page.changes)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(one_line(text, 2000), COLUMNS, subsequent_indent="  ")


def _columns(table: Table) -> Iterable[str]:
    """The table in as many blocks of columns below each other as the width takes."""
    names = [one_line(row[0], NAME) for row in (table.head, *table.rows)]
    first = max(map(len, names))
    cells = [row[1:] for row in (table.head, *table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    begin = 0
    while begin < len(widths):
        end, room = begin + 1, COLUMNS - first - widths[begin] - 2
        while end < len(widths) and widths[end] + 2 <= room:
            room -= widths[end] + 2
            end += 1
        for name, row in zip(names, cells, strict=True):
            own = zip(row[begin:end], widths[begin:end], strict=True)
            yield (
                name.ljust(first) + "".join(f"  {text:>{width}}" for text, width in own)
            ).rstrip()
        begin = end


def _markdown(collected: Collected) -> str:
    page = build(collected)
    lines = [f"* {_words(name)}: {_words(value)}" for name, value in page.facts]
    tables, notes = _with_changes(page)
    for table in tables:
        lines += ["", f"**{_words(table.title)}**", ""]
        lines.append(_bar([_words(name) for name in table.head]))
        lines.append("|---|" + "---:|" * (len(table.head) - 1))
        lines += [_bar([_words(name), *cells]) for name, *cells in table.rows]
    return "\n".join([*lines, *(f"\n{_words(note)}" for note in notes)]) + "\n"


def _with_changes(page: Page) -> tuple[list[Table], list[str]]:
    """The tables and the notes, those of the changes last."""
    if not page.changes:
        return page.tables, page.notes
    return [*page.tables, changes_table(page.changes)], [*page.notes, reading(page.changes)]


def _bar(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(text: str) -> str:
    """A text as words on one line of Markdown: nothing in it is markup."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text, 2000))


def _latex(collected: Collected) -> str:
    page = build(collected)
    tables, notes = _with_changes(page)
    lines = [f"% {one_line(f'{name}: {value}', 2000)}" for name, value in page.facts]
    for table in tables:
        lines += ["", r"\begin{tabular}{l" + "r" * (len(table.head) - 1) + "}", r"\hline"]
        lines.append(rf"\multicolumn{{{len(table.head)}}}{{l}}{{{_tex(table.title)}}} \\")
        lines += [_tex_row(table.head), r"\hline", *map(_tex_row, table.rows)]
        lines += [r"\hline", r"\end{tabular}"]
    lines += [f"% {one_line(note, 2000)}" for note in notes]
    return "\n".join(lines) + "\n"


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in one_line(text, 2000))


def _csv(collected: Collected) -> str:
    """One line for each method, benchmark and metric, numbers in full; and what became of it
    against the base policy, where that was tested.
    """
    tested = {
        (each.method, each.column, each.tested.name): each.tested
        for each in compare_with_base(collected)
    }
    file = io.StringIO()
    written = csv.DictWriter(file, CSV, lineterminator="\n")
    written.writeheader()
    day = collected.last_day()
    for row in collected.methods:
        for column, own in row.cells.items():
            for metric in metrics(collected, column):
                found = cell(own, metric)
                line: dict[str, Any] = {
                    "method": row.name,
                    "base_model": base_model(own[0]),
                    "date": day,
                }
                line |= {**column._asdict(), "metric": metric}
                line["judged_by_own_teacher"] = row.own_teacher(column)
                line |= found._asdict() if found else {}
                if each := tested.get((row, column, metric)):
                    line |= {name: getattr(each.change, field) for name, field in CHANGES.items()}
                    line["p_holm"] = each.holm
                written.writerow(line)
    return file.getvalue()


FORMATS: dict[str, Callable[[Collected], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
}
