"""What `srpo judge calibrate` and `srpo judge compare` print; 120 columns at most."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from srpo_jax.data_pipelines.verdict_store import VERDICTS
from srpo_jax.errors import one_line
from srpo_jax.judge.results.intervals import Interval
from srpo_jax.judge.trust.calibrate import Calibration
from srpo_jax.judge.trust.compare import Comparison, Likeness
from srpo_jax.judge.trust.estimates import Estimate
from srpo_jax.judge.trust.labels import LABELS

COLUMNS = 118
SHOWN = 10  # cases in which two judges differ
NAME = 100  # columns for the name of a set, whose end is its digest


class Row(NamedTuple):
    """One number with its 95 % interval, ready to be shown; "-" and "" where there is none."""

    name: str
    value: str
    interval: str
    meaning: str


def rows(found: Calibration) -> list[Row]:
    """The numbers of a calibration, for the terminal and for the page."""
    e = found.estimates
    table = [
        _rate("sensitivity", e.sensitivity, "of what people call UNSAFE the judge finds so much"),
        _rate("specificity", e.specificity, "of what people call SAFE the judge lets so much pass"),
        _rate("right when it says UNSAFE", e.unsafe_right, "what can be rejected in training"),
        _rate("right when it says SAFE", e.safe_right, "what can be chosen in training"),
        _rate("agreement", e.agreement, "judge and people say the same"),
        Row(
            "Cohen's kappa",
            number(found.kappa),
            "",
            "agreement beyond chance; low where nearly all are alike",
        ),
        Row(
            "Krippendorff's alpha", number(found.alpha), "", "the same, of all people and the judge"
        ),
    ]
    if len(found.raters) > 1:
        meaning = "of the people alone: more can hardly be asked of a judge"
        table.append(Row("alpha of the people", number(found.alpha_people), "", meaning))
    if found.grades:
        grades = found.grades
        best = grades.threshold
        meaning = f"of the score, over {grades.cases} labelled cases that have one"
        table += [
            Row("AUROC", number(grades.area, 3), _bounds(grades.interval, 1, 3), meaning),
            Row(
                "threshold on the score",
                f"{best.value:.3g}",
                "",
                f"Youden's J: from there on UNSAFE, sens. {_percent(best.sensitivity)}, spec. "
                f"{_percent(best.specificity)}",
            ),
        ]
    table += [
        _rate("UNSAFE by the judge", e.observed, "its rate as it stands"),
        _rate("UNSAFE, corrected", e.corrected, "(rate + spec - 1) / (sens + spec - 1)"),
    ]
    return table


def notes(found: Calibration) -> list[str]:
    """Sentences on how the numbers are to be read."""
    e = found.estimates
    said = [
        "The numbers are about all cases: each label stands for the cases with the same verdict of "
        f"{found.sampled_by}, of which the labelled ones are taken for a fair sample.",
        "ERROR is no opinion: it is in the confusion and in no number.",
    ]
    lacking = [
        v for v in LABELS if found.cases[v] and not any(found.confusion.get((x, v)) for x in LABELS)
    ]
    if lacking:
        said.append(
            f"No label is of a case that the judge calls {lacking[0]}, so most numbers cannot be "
            "told: label some (`srpo judge sample` draws both)."
        )
    elif e.sensitivity is None or e.specificity is None:
        kind = "UNSAFE" if e.sensitivity is None else "SAFE"
        said.append(f"People call nothing {kind}, so what the judge does with it cannot be told.")
    elif e.corrected is None:
        said.append(
            "No corrected rate: sensitivity + specificity is at most 1, so these verdicts tell "
            "nothing of the labels."
        )
    if found.ties:
        said.append(f"{found.ties} cases are left out as people are divided evenly over them.")
    if found.without_verdict:
        said.append(
            f"{found.without_verdict} labelled cases are left out: this set has no verdict on them."
        )
    return said


def heads(found: Calibration) -> list[tuple[str, str]]:
    """(name, value) of judge, cases and people."""
    counts = ", ".join(f"{found.cases[name]} {name}" for name in VERDICTS)
    judge = found.judge
    return [
        ("judge", f"{judge['arbiter']}, digest {judge['digest']}, verdict set {judge['set']}"),
        ("cases", f"{sum(found.cases.values())}: {counts}, of {found.what}"),
        ("labels", f"{len(found.labelled)} cases, by {', '.join(found.raters)}"),
    ]


def stands_for(found: Calibration, verdict: str) -> float | None:
    """How many cases a label of this verdict stands for, in the mean; None without a label."""
    labels = sum(found.confusion.get((label, verdict), 0) for label in LABELS)
    return found.cases[verdict] / labels if labels else None


CATEGORY_HEAD = ("category", "cases", "labels", "sensitivity, 95 %", "specificity, 95 %") + (
    ("agreement", "kappa")
)


def category_rows(found: Calibration) -> list[tuple[str, ...]]:
    """A row for each category, in the columns of CATEGORY_HEAD; "-" where nothing can be told."""
    return [
        (
            name,
            str(each.cases),
            str(each.labels),
            _wide(each.estimates.sensitivity),
            _wide(each.estimates.specificity),
            "-" if each.estimates.agreement is None else _percent(each.estimates.agreement.value),
            number(each.kappa),
        )
        for name, each in found.by_category.items()
    ]


def _category_lines(found: Calibration) -> list[str]:
    rows = category_rows(found)
    if not rows:
        return []
    widths = (-32, 7, 8, 25, 25, 11, 7)
    return [""] + [
        "".join(
            f"{one_line(cell, -width - 1):<{-width}}" if width < 0 else f"{cell:>{width}}"
            for cell, width in zip(row, widths)
        )
        for row in (CATEGORY_HEAD, *rows)
    ]


def format_calibration(found: Calibration) -> str:
    """Judge and people, the confusion, the numbers, those of categories, and how to read them."""
    lines = [one_line(f"{name + ':':<8}{value}", COLUMNS) for name, value in heads(found)]
    lines += ["", f"{'':<16}" + "".join(f"{'judge ' + name:>15}" for name in VERDICTS)]
    for label in LABELS:
        counts = [found.confusion.get((label, name), 0) for name in VERDICTS]
        lines.append(f"{'people ' + label:<16}" + "".join(f"{count:>15}" for count in counts))
    shares = [stands_for(found, name) for name in VERDICTS]
    cells = "".join(f"{'-' if s is None else f'{s:.4g}':>15}" for s in shares)
    lines += [f"{'cases a label':<16}{cells}", "", f"{'':<27}{'value':>9}   95 % interval"]
    for row in rows(found):
        lines.append(f"{row.name:<27}{row.value:>9}   {row.interval:<18}{row.meaning}".rstrip())
    lines += _category_lines(found)
    return "\n".join([*lines, "", *textwrap.wrap(" ".join(notes(found)), COLUMNS)])


def format_comparison(found: Comparison) -> str:
    """Both judges side by side, by category, and the first cases in which they differ."""
    one, other = found.names
    overall = found.overall
    lines = [
        f"A: {one_line(one, NAME)}",
        f"B: {one_line(other, NAME)}",
        one_line(
            f"{overall.cases} cases that both judged, {found.alone[0]} more only A, "
            f"{found.alone[1]} only B, of {found.what}",
            COLUMNS,
        ),
        "",
        f"{'':<12}" + "".join(f"{'B ' + name:>10}" for name in VERDICTS),
    ]
    for a in VERDICTS:
        cells = "".join(f"{overall.table.get((a, b), 0):>10}" for b in VERDICTS)
        lines.append(f"{'A ' + a:<12}{cells}")
    lines += ["", _like_head(), _like_line("all", overall)]
    lines += [_like_line(name, each) for name, each in found.by_category.items()]
    lines += ["", *_tests(overall)]
    if found.differ:
        shown = found.differ[:SHOWN]
        lines += ["", f"the first {len(shown)} of {len(found.differ)} cases in which they differ:"]
        for (name, at, k), (a, b) in shown:
            lines.append(f"  id {one_line(name, 60)}, at {at}, k {k}: A {a}, B {b}")
    return "\n".join(lines)


def _like_head() -> str:
    rates = "".join(f"{f'{side} UNSAFE, 95 %':>25}" for side in "AB")
    return f"{'':<24}{'cases':>7}{rates}{'agreement':>12}{'kappa':>8}{'alpha':>8}"


def _like_line(name: str, found: Likeness) -> str:
    rates = "".join(f"{_wide(each):>25}" for each in found.unsafe)
    agreed = "-" if found.agreement is None else _percent(found.agreement.value)
    return (
        f"{one_line(name, 23):<24}{found.cases:>7}{rates}{agreed:>12}{number(found.kappa):>8}"
        f"{number(found.alpha):>8}"
    )


def _tests(overall: Likeness) -> list[str]:
    if overall.p_value is None:
        return ["There is no case on which both have an opinion."]
    apart = [overall.table.get(pair, 0) for pair in (("UNSAFE", "SAFE"), ("SAFE", "UNSAFE"))]
    return [
        f"McNemar's exact test: UNSAFE only for A {apart[0]}, only for B {apart[1]}, "
        f"p = {overall.p_value:.3g}",
        "ERROR is no opinion: agreement, kappa, alpha and p are of the "
        f"{overall.opinions} cases on which both have one,",
        "and each rate of UNSAFE is of those on which that judge has one.",
    ]


def number(value: float | None, digits: int = 2) -> str:
    """With so many decimals; "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def _rate(name: str, found: Estimate | None, meaning: str) -> Row:
    if found is None:
        return Row(name, "-", "", meaning)
    return Row(
        name, _percent(found.value), f"{_bounds((found.low, found.high), 100, 1)} %", meaning
    )


def _bounds(interval: Interval | None, scale: int, digits: int) -> str:
    if interval is None:
        return ""
    low, high = (f"{scale * value:.{digits}f}" for value in interval)
    return f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _wide(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{_percent(found.value)} ({100 * found.low:.1f} to {100 * found.high:.1f})"
