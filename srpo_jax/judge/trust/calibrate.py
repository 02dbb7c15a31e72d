"""`srpo judge calibrate`: verdicts of a judge beside the labels of people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.data_pipelines.verdict_store import VERDICTS, VerdictSet
from srpo_jax.errors import UserError
from srpo_jax.judge.results.intervals import Interval
from srpo_jax.judge.trust.estimates import Estimates, Stratum, estimate
from srpo_jax.judge.trust.labels import LABELS, Key
from srpo_jax.judge.trust.material import Material, Opinion, cases
from srpo_jax.judge.trust.statistics import (
    Roc,
    Threshold,
    alpha,
    auroc,
    best_threshold,
    kappa,
    roc,
)

Labels = Mapping[str, Mapping[Key, str]]  # by the name of the rater


class Labelled(NamedTuple):
    """A case that people looked at. label: of more than half of them; None for a tie. weight: how
    many cases it stands for, among those with the same verdict of the judge.
    """

    key: Key
    opinion: Opinion
    said: dict[str, str]  # by rater
    label: str | None
    weight: float

    @property
    def differs(self) -> bool:
        return self.label is not None and self.label != self.opinion.verdict


class Grades(NamedTuple):
    """What the score of a judge is worth, over the labelled cases that have one."""

    cases: int
    area: float
    interval: Interval | None
    curve: Roc
    threshold: Threshold


class OfCategory(NamedTuple):
    """A category of questions: its cases with a verdict, how many of them have a label, and the
    numbers, about all of its cases.
    """

    cases: int
    labels: int
    estimates: Estimates
    kappa: float | None


class Calibration(NamedTuple):
    """A judge beside people. All numbers but `confusion` are of all cases with a verdict."""

    judge: dict[str, str]  # "set", "arbiter", "digest"
    what: str  # was judged
    raters: tuple[str, ...]
    sampled_by: str
    cases: dict[str, int]  # by verdict of the judge
    confusion: dict[tuple[str, str], int]  # (label, verdict): labelled cases
    ties: int
    without_verdict: int  # labels of what the judge gave no verdict on
    estimates: Estimates
    kappa: float | None
    alpha: float | None  # of people and judge
    alpha_people: float | None
    grades: Grades | None
    by_category: dict[str, OfCategory]  # in name order; cases of none are in no entry
    labelled: tuple[Labelled, ...]

    @property
    def disagreements(self) -> list[Labelled]:
        """What the judge took for SAFE and people for UNSAFE, the other way round, then ERROR."""
        order = {"SAFE": 0, "UNSAFE": 1, "ERROR": 2}
        differ = [each for each in self.labelled if each.differs]
        return sorted(differ, key=lambda each: order[each.opinion.verdict])


def calibrate(
    material: Material, verdicts: VerdictSet, labels: Labels, sampled_by: str = ""
) -> Calibration:
    """How far the verdicts agree with the labels, for all cases with a verdict.

    sampled_by: the set by whose verdicts the labels were sampled ("" means: by these); of those
    with one verdict there, the labelled ones have to be a fair sample. See estimates.py.
    Errors: UserError for labels of what is not there, and where none is of a case with an opinion.
    """
    opinions = material.opinions(verdicts)
    said, without = _by_case(material, opinions, labels)
    shares = _shares(material, verdicts, list(said), labels, sampled_by)
    chosen = {key: _majority(by_rater) for key, by_rater in said.items()}
    known = cases(opinions)
    counts = {name: sum(each.verdict == name for each in known.values()) for name in VERDICTS}

    labelled = tuple(
        Labelled(key, known[key], by_rater, chosen[key], weight)
        for key, by_rater in said.items()
        for weight in [shares[key]]
    )
    decided = _to_all_cases([each for each in labelled if each.label], counts)
    labelled = _to_all_cases(labelled, counts)
    if not any(each.opinion.verdict != "ERROR" for each in decided):
        raise UserError(f"no label is of a case that {verdicts.name} holds for SAFE or UNSAFE")
    estimates = estimate(*(_stratum(decided, name, counts[name]) for name in LABELS))
    return Calibration(
        judge={"set": verdicts.name, **{n: str(verdicts.judge[n]) for n in ("arbiter", "digest")}},
        what=material.what,
        raters=tuple(labels),
        sampled_by=sampled_by or verdicts.name,
        cases=counts,
        confusion=dict(Counter((str(e.label), e.opinion.verdict) for e in decided)),
        ties=len(labelled) - len(decided),
        without_verdict=without,
        estimates=estimates,
        kappa=None if estimates.agreement is None else _kappa(decided),
        alpha=None if estimates.agreement is None else _alpha(labelled, with_judge=True),
        alpha_people=_alpha(labelled, with_judge=False) if len(labels) > 1 else None,
        grades=None if estimates.agreement is None else _grades(decided),
        by_category=_by_category(decided, known.values()),
        labelled=labelled,
    )


def _by_case(
    material: Material, opinions: Mapping[Key, Opinion], labels: Labels
) -> tuple[dict[Key, dict[str, str]], int]:
    """({case: {rater: label}}, how many labels are of branches without a verdict)."""
    there: set[Key] = set()
    if any(key not in opinions for given in labels.values() for key in given):
        there = {(t["id"], b["at"], b["k"]) for t in material.source for b in t["branches"]}
    said: dict[Key, dict[str, str]] = {}
    without: set[Key] = set()
    for rater, given in labels.items():
        for key, label in given.items():
            if key in opinions:
                case = opinions[key].case
                if said.setdefault(case, {}).setdefault(rater, label) != label:
                    raise UserError(
                        f"{rater} has two labels for one path: id {key[0]!r}, at {case[1]}, "
                        f"k {case[2]} reads the same as at {key[1]}, k {key[2]}; choose one"
                    )
            elif key in there:
                without.add(key)
            else:
                raise UserError(
                    f"{rater} has a label for what is not in {material.what}: id {key[0]!r}, "
                    f"at {key[1]}, k {key[2]}"
                )
    order = {key: number for number, key in enumerate(opinions)}
    return dict(sorted(said.items(), key=lambda item: order[item[0]])), len(without)


def _majority(by_rater: Mapping[str, str]) -> str | None:
    """What more than half of the raters of a case say."""
    (label, count), *_ = Counter(by_rater.values()).most_common(1)
    return label if 2 * count > len(by_rater) else None


def _shares(
    material: Material, verdicts: VerdictSet, said: list[Key], labels: Labels, sampled_by: str
) -> dict[Key, float]:
    """For each labelled case how many cases of the sampling set's same verdict it stands for."""
    if not sampled_by or sampled_by == verdicts.name:
        return dict.fromkeys(said, 1.0)  # _to_all_cases does the same by these verdicts
    if sampled_by not in material.names:
        raise UserError(
            f"the labels were sampled by the verdicts of {sampled_by!r}, which are not beside "
            f"{material.what}: without them nobody knows what the labels stand for"
        )
    opinions = material.opinions(material.find(sampled_by))
    lost = next((key for key in said if key not in opinions), None)
    if lost is not None:
        raise UserError(
            f"id {lost[0]!r}, at {lost[1]}, k {lost[2]} is labelled, and {sampled_by} has no "
            "verdict on it, though the labels were sampled by it"
        )
    counts = Counter(each.verdict for each in cases(opinions).values())
    # Also those that are without a verdict here were drawn there.
    keys = {opinions[key].case for given in labels.values() for key in given if key in opinions}
    drawn = Counter(opinions[key].verdict for key in keys)
    return {key: counts[opinions[key].verdict] / drawn[opinions[key].verdict] for key in said}


def _to_all_cases(labelled: Sequence[Labelled], counts: Mapping[str, int]) -> tuple[Labelled, ...]:
    """Weights scaled so that those of each verdict add up to the cases that have it."""
    total: dict[str, float] = dict.fromkeys(VERDICTS, 0.0)
    for each in labelled:
        total[each.opinion.verdict] += each.weight
    return tuple(
        each._replace(
            weight=each.weight * counts[each.opinion.verdict] / total[each.opinion.verdict]
        )
        for each in labelled
    )


def _by_category(decided: Sequence[Labelled], opinions: Iterable[Opinion]) -> dict[str, OfCategory]:
    """Within a category, too, the labels of one verdict are a fair sample of the cases that have it
    there, of which the number is known.
    """
    counted = Counter((each.category, each.verdict) for each in opinions if each.category)
    found = {}
    for name in sorted({str(category) for category, _ in counted}):
        counts = {verdict: counted[name, verdict] for verdict in VERDICTS}
        own = _to_all_cases([e for e in decided if e.opinion.category == name], counts)
        estimates = estimate(*(_stratum(own, verdict, counts[verdict]) for verdict in LABELS))
        agreed = None if estimates.agreement is None else _kappa(own)
        found[name] = OfCategory(sum(counts.values()), len(own), estimates, agreed)
    return found


def _stratum(decided: Iterable[Labelled], verdict: str, count: int) -> Stratum:
    """labels: Kish's effective number, which is the number itself where all weigh the same."""
    found = [
        (each.weight, each.label == "UNSAFE") for each in decided if each.opinion.verdict == verdict
    ]
    total = sum(weight for weight, _ in found)
    if not found:
        return Stratum(count, 0.0, 0.0)
    effective = total**2 / sum(weight**2 for weight, _ in found)
    unsafe = sum(weight for weight, is_unsafe in found if is_unsafe) / total
    return Stratum(count, effective, unsafe)


def _kappa(decided: Iterable[Labelled]) -> float | None:
    table: dict[tuple[str, str], float] = {}
    for each in decided:
        if each.opinion.verdict != "ERROR":
            pair = (str(each.label), each.opinion.verdict)
            table[pair] = table.get(pair, 0.0) + each.weight
    return kappa(table)


def _alpha(labelled: Iterable[Labelled], *, with_judge: bool) -> float | None:
    """The judge's ERROR is a gap."""
    units: list[list[Any]] = []
    for each in labelled:
        verdict = each.opinion.verdict
        own = [verdict] if with_judge and verdict != "ERROR" else []
        units.append([*each.said.values(), *own])
    return alpha(units, [each.weight for each in labelled])


def _grades(decided: Iterable[Labelled]) -> Grades | None:
    scored = [e for e in decided if e.opinion.score is not None and e.opinion.verdict != "ERROR"]
    given = (
        [each.opinion.score for each in scored],
        [each.label == "UNSAFE" for each in scored],
        [each.weight for each in scored],
    )
    curve, area = roc(*given), auroc(*given)  # pyright: ignore[reportArgumentType]
    if curve is None or area is None:
        return None
    return Grades(len(scored), *area, curve, best_threshold(curve))
