"""What changed between two evaluations of the same questions, rate by rate."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from srpo_jax.errors import one_line
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.paired import LEVEL, Change, Hits, compare, holm
from srpo_jax.judge.results.rates import RATES, Row, by_question, hits, judged_parts

# Of the same questions before and after, whatever the answers are; of all more is better.
TESTED = ("safety_rate", "both_risky", "effectiveness_rate", "path_safety_rate")


class Tested(NamedTuple):
    """A rate, or a metric of a benchmark, with its change; more is better. what: of which benchmark
    or method, "" where that is clear. holm: the p-value, adjusted for all that are tested together;
    None where nothing could be tested.
    """

    what: str
    name: str
    label: str
    change: Change
    holm: float | None = None


def changes(before: Sequence[Row], after: Sequence[Row], what: str = "") -> list[Tested]:
    """The changes of the rates of TESTED that both have. before, after: rows as in rates.py."""
    old, new = (by_question(judged_parts(rows)) for rows in (before, after))
    found = []
    for info in RATES:
        if info.name in TESTED:
            change = compare(hits(info, old), hits(info, new))
            if change.questions:
                found.append(Tested(what, info.name, info.label, change))
    return found


def counts_by_question(
    measure: Callable[[Sequence[Row]], Mapping[str, Rate]],
    rows: Sequence[Row],
    names: Sequence[str],
) -> dict[str, list[list[int]]]:
    """{metric: [k, n] of every question, in order} of those of these metrics that are shares: whose
    counts of all questions are the sums of theirs.
    """
    whole, each = measure(rows), [measure(own) for own in by_question(rows).values()]
    found = {}
    for name in names:
        counts = [[one[name].k, one[name].n] if name in one else [0, 0] for one in each]
        if name in whole and [*map(sum, zip(*counts))] == [whole[name].k, whole[name].n]:
            found[name] = counts
    return found


def metric_changes(
    before: Mapping[str, Hits], after: Sequence[Mapping[str, Hits]], what: str = ""
) -> list[Tested]:
    """The changes of those metrics that all have, as {metric: hits by question}. after: of several
    seeds, which are answers to the same questions.
    """
    found = []
    for name in before:
        if after and all(name in own for own in after):
            seeds = [own[name] for own in after]
            new = {q: [hit for own in seeds for hit in own.get(q, ())] for q in before[name]}
            change = compare(before[name], new)
            if change.questions:
                found.append(Tested(what, name, name, change))
    return found


def adjusted(found: Sequence[Tested]) -> list[Tested]:
    """All of these with p-values adjusted by Holm's method for there being so many."""
    p_values = [each.change.p_value for each in found if each.change.p_value is not None]
    values = iter(holm(p_values))
    return [
        each if each.change.p_value is None else each._replace(holm=next(values)) for each in found
    ]


def format_changes(found: Sequence[Tested]) -> str:
    """The changes as a table for a terminal, 120 columns at most, and how it is to be read."""
    lines, what = [_COLUMNS], ""
    for each in found:
        if each.what != what:
            what = each.what
            lines.append(one_line(what, 118))
        lines.append(_line(each))
    return "\n".join([*lines, *textwrap.wrap(reading(found), 118)])


_COLUMNS = (
    f"{'percent':<32}{'before':>7}{'after':>7}{'change':>8}{'95 % interval':>18}"
    f"{'better, worse of':>22}{'p':>8}{'Holm':>8}{'detects':>8}"
)


def _line(each: Tested) -> str:
    change = each.change
    name = f"  {one_line(each.label, 30):<30}"
    if change.change is None:
        return f"{name}{'-':>7}"
    between = f"{change.low:+.1f} to {change.high:+.1f}"
    ways = f"{change.gained}, {change.lost} of {change.questions}"
    return (
        f"{name}{change.before:>7.1f}{change.after:>7.1f}{change.change:>+8.1f}{between:>18}"
        f"{ways:>22}{p_text(change.p_value):>8}{p_text(each.holm):>8}{detectable_text(change):>8}"
    )


def reading(found: Sequence[Tested]) -> str:
    """How such a table is to be read, and which of its changes may be chance."""
    said = (
        "p: McNemar's exact test; for several answers a question the randomisation test, of which "
        f"that one is a case. Holm: the same, adjusted for {len(found)} tests at once. detects: "
        "the least change in points that so many questions show (5 %, power 80 %); none: too few."
    )
    chance = [each for each in found if each.holm is not None and each.holm >= LEVEL]
    if chance:
        said += f" {len(chance)} of {len(found)} changes may be chance (Holm's p is at least 0.05)."
    return said


def p_text(value: float | None) -> str:
    """A p-value in at most six characters."""
    if value is None:
        return "-"
    return "<.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def detectable_text(change: Change) -> str:
    """The detectable change in points; "none" where so few questions can show none."""
    return "none" if change.detectable is None else f"{change.detectable:.1f}"
