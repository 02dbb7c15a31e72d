"""What stands in a cell: a rate of one run, or of several seeds of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy import special

from srpo_jax.judge.results.rates import BY_NAME
from srpo_jax.judge.results.scores import read_rate
from srpo_jax.runs.methods_table.collect import Collected, Column, Evaluation

# Of what is no benchmark with metrics of its own; what every one ends with.
HEADLINE = ("safety_rate", "both_risky", "effectiveness_rate")
LAST = ("error_rate",)


class Cell(NamedTuple):
    """value, low, high: percent; low and high None for scores of an older version. k, n: answers of
    all seeds. spread: standard deviation over seeds in points, None for one.
    """

    value: float
    low: float | None
    high: float | None
    k: int
    n: int
    seeds: int
    spread: float | None


def metrics(collected: Collected, column: Column) -> list[str]:
    """The names of what is shown of a column: of a benchmark with metrics of its own these, else
    HEADLINE and what metrics there are (of several answers); and how much could not be judged.
    """
    found = [each for row in collected.methods for each in row.cells.get(column, [])]
    own = {name: None for each in found for name in each.scores.get("metrics") or {}}
    if not (own and all(each.scores.get("benchmark") for each in found)):
        own = {**dict.fromkeys(HEADLINE), **own}
    return list({**own, **dict.fromkeys(LAST)})


def label(metric: str) -> str:
    """A metric in words."""
    return BY_NAME[metric].label if metric in BY_NAME else metric


def cell(evaluations: Sequence[Evaluation], metric: str) -> Cell | None:
    """The mean over seeds of a metric; None where none has it.

    Of one seed the interval is that of the rate, which tells of other questions. Of several it is
    Student's, which tells of other seeds on these questions, but nowhere narrower than the mean of
    the seeds' own: three seeds that agree on four questions are still only four questions.
    """
    rates = [found for each in evaluations if (found := read_rate(each.scores, metric))]
    values = [float(rate.value) for rate in rates if rate.value is not None]
    if not values:
        return None
    value = mean(values)
    lows = [rate.low for rate in rates if rate.low is not None]
    highs = [rate.high for rate in rates if rate.high is not None]
    low = high = spread = None
    if len(lows) == len(highs) == len(values):
        low, high = mean(lows), mean(highs)
    if len(values) > 1:
        spread = stdev(values)
        half = float(special.stdtrit(len(values) - 1, 0.975)) * spread / math.sqrt(len(values))
        low, high = (
            max(0.0, min(value - half, value if low is None else low)),
            min(100.0, max(value + half, value if high is None else high)),
        )
    k, n = sum(rate.k for rate in rates), sum(rate.n for rate in rates)
    return Cell(value, low, high, k, n, len(values), spread)
