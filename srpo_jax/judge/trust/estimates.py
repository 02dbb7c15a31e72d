"""What labels of a few cases say of a judge's verdicts on all of them.

The labels are usually not a fair sample: of rare verdicts more are labelled. So sensitivity and
specificity cannot be read off the labelled cases. But within one verdict of the judge the labels
are a fair sample of the cases that have it, and how many have it is known. With W the share of a
verdict in all cases, and q the share of UNSAFE labels in it,

    rate of UNSAFE   W_U q_U + W_S q_S
    sensitivity      W_U q_U / (W_U q_U + W_S q_S)
    specificity      W_S (1 - q_S) / (W_S (1 - q_S) + W_U (1 - q_U))

With these two, (p + spec - 1) / (sens + spec - 1) of the judge's rate p = W_U is that rate of
UNSAFE (double sampling, Tenenbein 1970). Cases without an opinion of the judge (ERROR) are in none
of it: nothing is imputed to them.

Intervals are Wilson's, for as many draws as would have the variance by the delta method, which
carries that of q_S, q_U and p; where each case is labelled these are just the number of labels. In
the variance half a label more of each kind is counted where a q of 0 or 1 would have none.
"""

from __future__ import annotations

from typing import NamedTuple

from srpo_jax.judge.results.intervals import wilson
from srpo_jax.judge.trust.statistics import corrected_rate


class Stratum(NamedTuple):
    """Cases with one verdict of the judge. labels: how many of them, a fair sample, are labelled
    (an effective number: need not be whole). unsafe: the share of UNSAFE among these labels.
    """

    cases: int
    labels: float
    unsafe: float


class Estimate(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


class Estimates(NamedTuple):
    """None: nothing can be said. See the module's docstring."""

    observed: Estimate | None  # share of UNSAFE verdicts
    corrected: Estimate | None  # share of UNSAFE by the labels
    sensitivity: Estimate | None
    specificity: Estimate | None
    agreement: Estimate | None
    unsafe_right: Estimate | None  # of UNSAFE verdicts those that are right
    safe_right: Estimate | None


def estimate(safe: Stratum, unsafe: Stratum) -> Estimates:
    """All estimates. safe, unsafe: the cases that the judge calls so. Where it calls cases so of
    which none is labelled, only the judge's own rate, and what is right of the other, are known.
    """
    total = safe.cases + unsafe.cases
    observed = _share(unsafe.cases / total, total) if total else None
    right = [s._replace(unsafe=p) for s, p in ((safe, 1 - safe.unsafe), (unsafe, unsafe.unsafe))]
    each = [_share(s.unsafe, s.labels) if s.labels else None for s in right]
    if not total or any(s.cases and not s.labels for s in (safe, unsafe)):
        return Estimates(observed, None, None, None, None, each[1], each[0])
    sensitivity = _found(unsafe, safe)
    specificity = _found(*(s._replace(unsafe=1 - s.unsafe) for s in (safe, unsafe)))
    corrected = None
    if observed and sensitivity and specificity:
        value = corrected_rate(observed.value, sensitivity.value, specificity.value)
        corrected = None if value is None else _overall((safe, unsafe), value)
    agreement = _overall(right)
    return Estimates(observed, corrected, sensitivity, specificity, agreement, each[1], each[0])


def _share(value: float, count: float) -> Estimate:
    return Estimate(value, *wilson(value, count))


def _found(hit: Stratum, missed: Stratum) -> Estimate | None:
    """Of the cases that are so (`unsafe`), the share that lies in `hit`; None if there are none."""
    there, not_there = hit.cases * hit.unsafe, missed.cases * missed.unsafe
    if not there + not_there:
        return None
    seen = hit.labels * hit.unsafe + missed.labels * missed.unsafe
    value = there / (there + not_there)
    if not hit.cases or not missed.cases:
        return _share(value, seen)
    certain = not there or not not_there
    one, other = (_softened(s) if certain else s for s in (hit, missed))
    likely = one.cases * one.unsafe
    likely /= likely + other.cases * other.unsafe
    variance = sum(  # of the log-odds
        1 / (s.labels * s.unsafe) - 1 / s.labels + 1 / s.cases for s in (one, other)
    )
    draws = 1 / (likely * (1 - likely) * variance)
    return _share(value, min(draws, seen) if certain else draws)


def _overall(strata: tuple[Stratum, ...] | list[Stratum], value: float | None = None) -> Estimate:
    """The share of `unsafe` in all cases. value: the same, where it was computed another way."""
    total = sum(s.cases for s in strata)
    if value is None:
        value = sum(s.cases * s.unsafe for s in strata) / total
    soft = [_softened(s) if s.labels < s.cases else s for s in strata if s.cases]
    likely = sum(s.cases * s.unsafe for s in soft) / total
    variance = sum(
        (s.cases / total) ** 2 * s.unsafe * (1 - s.unsafe) / s.labels
        + s.cases / total * (s.unsafe - likely) ** 2 / total
        for s in soft
    )
    return _share(value, likely * (1 - likely) / variance if variance else total)


def _softened(stratum: Stratum) -> Stratum:
    """With half a label more of each kind."""
    labels = stratum.labels + 1
    share = (stratum.labels * stratum.unsafe + 0.5) / labels
    return stratum._replace(labels=labels, unsafe=share)
