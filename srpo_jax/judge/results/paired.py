"""Before and after on the same questions: the change, its interval, and whether it is one at all.

Only the difference on each question counts; how hard the questions are drops out. With one answer a
question the test is McNemar's exact one. With several it is the test of which that is a special
case: the sign of each question's difference is drawn anew, as it would be if before and after did
not differ (Fisher's randomisation test). Intervals are of 95 %, over questions.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes seconds to import

from srpo_jax.judge.results.intervals import RESAMPLES, Interval, Z, wilson

LEVEL, POWER = 0.05, 0.80
SIGNS = 19_999  # draws of all signs
Hits = Mapping[str, Sequence[bool]]  # by question: whether it holds of each of its answers


class Change(NamedTuple):
    """What became of a rate. questions: those that both have answers to. before, after in percent,
    change, low, high in percentage points; None without questions. gained, lost: questions with a
    higher, or a lower share. p_value: two-sided. detectable: the smallest change in points that the
    test at 5 % would find four times in five among so many questions; None where it can find none.
    """

    questions: int
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    gained: int
    lost: int
    p_value: float | None
    detectable: float | None
    method: str  # "mcnemar", "randomisation"


def compare(before: Hits, after: Hits, seed: int = 0) -> Change:
    """The change on the questions that both have answers to; each question weighs the same.

    One answer each: McNemar's exact test, and Newcombe's (1998) interval of the difference of
    paired shares (his method 10). Several: the randomisation test, and the percentiles of a
    bootstrap over questions. The same hits and seed give the same numbers.
    """
    shared = [name for name in before if name in after and before[name] and after[name]]
    alone = all(len(side[name]) == 1 for side in (before, after) for name in shared)
    method = "mcnemar" if alone else "randomisation"
    if not shared:
        return Change(0, None, None, None, None, None, 0, 0, None, None, method)
    old, new = (np.array([np.mean(side[n]) for n in shared]) for side in (before, after))
    own = new - old
    gained, lost = int((own > 1e-9).sum()), int((own < -1e-9).sum())
    if alone:
        p_value, detectable = mcnemar(gained, lost), detectable_change(len(own), min(gained, lost))
        both = int(((old > 0.5) & (new > 0.5)).sum())
        low, high = paired_interval(both, gained, lost, len(own) - both - gained - lost)
    else:
        p_value, (low, high) = randomisation(own, seed), _bootstrap(own, seed)
        detectable = _detectable_mean(own)
    return Change(
        len(own),
        100 * float(old.mean()),
        100 * float(new.mean()),
        100 * float(own.mean()),
        100 * low,
        100 * high,
        gained,
        lost,
        p_value,
        None if detectable is None else 100 * detectable,
        method,
    )


def mcnemar(only_one: int, only_other: int) -> float:
    """McNemar's exact two-sided p-value: of the cases in which two sides differ, whether more are
    for one than for the other. 1 where they differ in none.
    """
    differ = only_one + only_other
    return min(1.0, 2 * float(special.bdtr(min(only_one, only_other), differ, 0.5)))


def paired_interval(both: int, gained: int, lost: int, neither: int) -> Interval:
    """Newcombe's (1998, Statistics in Medicine 17, 2635-2650) interval for the difference of two
    shares of the same questions, method 10: Wilson's intervals of both, put together by the
    correlation between them, with his correction for continuity in it.
    """
    total = both + gained + lost + neither
    new, old = (both + gained) / total, (both + lost) / total
    (new_low, new_high), (old_low, old_high) = wilson(new, total), wilson(old, total)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    product = both * neither - gained * lost
    if product > 0:
        product = max(product - total / 2, 0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def width(of_new: float, of_old: float) -> float:
        return math.sqrt(max(0.0, of_new**2 - 2 * phi * of_new * of_old + of_old**2))

    middle = new - old
    low = middle - width(new - new_low, old_high - old)
    return max(-1.0, low), min(1.0, middle + width(new_high - new, old - old_low))


def randomisation(own: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of a mean of 0, of the questions' own differences [questions]: how often a
    sum with signs drawn at random is as far from 0, this sum counted with the others.
    """
    size = np.rint(np.abs(own) * 1e9).astype(np.int64)
    kinds, counts = np.unique(size[size > 0], return_counts=True)
    draw = np.random.default_rng(seed)
    plus = draw.binomial(counts, 0.5, (SIGNS, len(counts)))  # of equal sizes only their number
    sums = np.abs((2 * plus - counts) @ kinds)
    seen = abs(int(np.sign(own).astype(np.int64) @ size))
    near = len(own)  # what rounding to 1e-9 can leave of equal sums
    return float((1 + (sums >= seen - near).sum()) / (SIGNS + 1))


def _detectable_mean(own: np.ndarray) -> float | None:
    """By the normal approximation, from the spread of the questions' differences. None: so few
    questions have no p-value below 5 %, or the spread tells nothing.
    """
    if 2 * 0.5 ** len(own) > LEVEL:
        return None
    needed = (Z + NormalDist().inv_cdf(POWER)) * float(own.std(ddof=1)) / math.sqrt(len(own))
    return needed if 0 < needed <= 1 else None


def _bootstrap(own: np.ndarray, seed: int) -> Interval:
    counts = Counter(own.tolist())
    kinds = np.array(sorted(counts))
    each = np.array([counts[kind] for kind in kinds.tolist()], np.float64)
    drawn = np.random.default_rng(seed).multinomial(len(own), each / len(own), RESAMPLES)
    low, high = np.percentile(drawn @ kinds / len(own), [2.5, 97.5])
    return float(low), float(high)


def detectable_change(questions: int, against: int = 0) -> float | None:
    """The smallest gain, as a share of the questions, that McNemar's exact test at 5 % would find
    with a power of 80 %, if as many change the other way as here (`against` of them). None: none.
    """
    other = against / questions
    low, high = 0.0, 1.0 - 2 * other
    if high <= 0 or _power(questions, high + other, other) < POWER:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        found = _power(questions, middle + other, other) >= POWER
        low, high = (low, middle) if found else (middle, high)
    return high


def _power(questions: int, gained: float, lost: float) -> float:
    """Of McNemar's exact test, where these shares of all questions are gained and lost: its power
    among so many that differ, summed over how many these can be.
    """
    differ, most = _rejected(questions)
    share = gained / (gained + lost)
    few = np.maximum(most, 0)
    found = special.bdtr(few, differ, share) + special.bdtrc(differ - few - 1, differ, share)
    rate = min(1.0, gained + lost)
    ways = special.gammaln(questions + 1) - special.gammaln(differ + 1)
    ways -= special.gammaln(questions - differ + 1)
    log = ways + special.xlogy(differ, rate) + special.xlog1py(questions - differ, -rate)
    return float(np.exp(log) @ np.where(most < 0, 0, found))


@functools.lru_cache(maxsize=8)
def _rejected(questions: int) -> tuple[np.ndarray, np.ndarray]:
    """(how many differ, with how few of the rarer kind the test rejects; -1: never)."""
    differ = np.arange(questions + 1)
    most = np.full(questions + 1, -1)
    few = -1
    for count in range(1, questions + 1):  # as more differ, the rarer kind may be more, too
        while 2 * special.bdtr(few + 1, count, 0.5) <= LEVEL:
            few += 1
        most[count] = few
    return differ, most


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of several tests: rejecting those below 5 % keeps the chance
    of any false alarm among them at 5 %, whatever depends on what.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted
