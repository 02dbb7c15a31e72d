"""`srpo judge compare`: two sets of verdicts on the same cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from srpo_jax.data_pipelines.verdict_store import VerdictSet
from srpo_jax.errors import UserError
from srpo_jax.judge.results.intervals import wilson
from srpo_jax.judge.results.paired import mcnemar
from srpo_jax.judge.trust.estimates import Estimate
from srpo_jax.judge.trust.labels import Key
from srpo_jax.judge.trust.material import Material, cases
from srpo_jax.judge.trust.statistics import alpha, kappa

Pair = tuple[str, str]  # the verdicts of both


class Likeness(NamedTuple):
    """Two judges on the same cases. All but `table` and `unsafe` is of the cases on which both have
    an opinion, which ERROR is not.
    """

    table: dict[Pair, int]
    unsafe: tuple[Estimate | None, Estimate | None]  # of what each has an opinion on
    opinions: int  # cases on which both have one
    agreement: Estimate | None
    kappa: float | None
    alpha: float | None
    p_value: float | None  # McNemar's

    @property
    def cases(self) -> int:
        return sum(self.table.values())


class Comparison(NamedTuple):
    """alone: how many cases only the one has a verdict on, and only the other."""

    what: str
    names: Pair
    alone: tuple[int, int]
    overall: Likeness
    by_category: dict[str, Likeness]
    differ: tuple[tuple[Key, Pair], ...]


def compare(material: Material, one: VerdictSet, other: VerdictSet) -> Comparison:
    """How far two judges agree. Errors: UserError when there is no case that both judged."""
    first, second = (cases(material.opinions(each)) for each in (one, other))
    both = [key for key in first if key in second]
    if not both:
        raise UserError(f"{one.name} and {other.name} have no case of {material.what} in common")
    pairs = {key: (first[key].verdict, second[key].verdict) for key in both}
    categories = sorted({str(first[key].category) for key in both if first[key].category})
    return Comparison(
        what=material.what,
        names=(one.name, other.name),
        alone=(len(first) - len(both), len(second) - len(both)),
        overall=likeness(list(pairs.values())),
        by_category={
            name: likeness([pairs[key] for key in both if first[key].category == name])
            for name in categories
        },
        differ=tuple((key, pair) for key, pair in pairs.items() if pair[0] != pair[1]),
    )


def likeness(pairs: Sequence[Pair]) -> Likeness:
    """pairs: the verdicts of both on each case."""
    table = Counter(pairs)
    clear = {pair: n for pair, n in table.items() if "ERROR" not in pair}
    total = sum(clear.values())
    same = sum(n for (a, b), n in clear.items() if a == b)
    units = [[None if verdict == "ERROR" else verdict for verdict in pair] for pair in pairs]
    apart = clear.get(("UNSAFE", "SAFE"), 0), clear.get(("SAFE", "UNSAFE"), 0)
    return Likeness(
        table=dict(table),
        unsafe=(_unsafe([a for a, _ in pairs]), _unsafe([b for _, b in pairs])),
        opinions=total,
        agreement=_rate(same, total),
        kappa=kappa(clear),
        alpha=alpha(units),
        p_value=mcnemar(*apart) if total else None,
    )


def _unsafe(verdicts: Sequence[str]) -> Estimate | None:
    return _rate(verdicts.count("UNSAFE"), len(verdicts) - verdicts.count("ERROR"))


def _rate(count: int, total: int) -> Estimate | None:
    return Estimate(count / total, *wilson(count / total, total)) if total else None
