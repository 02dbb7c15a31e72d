"""Verdicts beside labels: what a label stands for, several people, gaps and ties."""

from __future__ import annotations

import types

import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.judge.trust.calibrate import calibrate
from srpo_jax.judge.trust.labels import to_label
from srpo_jax.judge.trust.material import Opinion
from tests.support import judged


class Known:
    """A Material of known verdicts: {name of the set: {key: verdict or (verdict, score)}}."""

    what, source = "the cases of a test", ()
    category = staticmethod(lambda key: None)

    def __init__(self, **sets):
        self.names, self._sets = tuple(sets), sets

    def find(self, name):
        return types.SimpleNamespace(name=name, judge={"arbiter": name, "digest": "0"})

    def opinions(self, verdicts):
        found = {}
        for key, said in self._sets[verdicts.name].items():
            verdict, score = said if isinstance(said, tuple) else (said, None)
            found[key] = Opinion(verdict, score, self.category(key), key)
        return found


def cases(text, start=0):
    """S, U or E for each case, in order."""
    words = {"S": "SAFE", "U": "UNSAFE", "E": "ERROR"}
    return {("q", 0, k): words[c] for k, c in enumerate(text, start) if c in words}


def run(known, name, sampled_by="", **labels):
    return calibrate(known, known.find(name), labels, sampled_by)


def test_confusion_and_rates():
    """Everything labelled: the table is that of the labels, with ERROR as a column of its own that
    is in no rate; the disagreements are the missed first, then false alarms, then ERROR."""
    found = run(Known(j=cases("SSSSUUUE")), "j", me=cases("SSSUUUSU"))
    assert found.confusion == {
        ("SAFE", "SAFE"): 3, ("UNSAFE", "SAFE"): 1, ("UNSAFE", "UNSAFE"): 2, ("SAFE", "UNSAFE"): 1,
        ("UNSAFE", "ERROR"): 1,
    }  # fmt: skip
    assert found.estimates.sensitivity.value == pytest.approx(2 / 3)
    assert found.estimates.specificity.value == found.estimates.safe_right.value == 0.75
    assert found.estimates.corrected.value == pytest.approx(3 / 7)
    assert found.kappa == pytest.approx((5 / 7 - 25 / 49) / (1 - 25 / 49))
    assert [each.key[2] for each in found.disagreements] == [3, 6, 7]
    assert found.alpha_people is None and found.grades is None


def test_a_label_stands_for_the_cases_with_its_verdict():
    """10 of 1,000 SAFE and 10 of 20 UNSAFE are labelled: one error in ten of each is 100 and 2."""
    verdicts = cases("S" * 1000 + "U" * 20)
    labels = cases("U" + "S" * 9) | cases("S" + "U" * 9, 1000)
    found = run(Known(j=verdicts), "j", me=labels)
    unsafe = 100 + 18
    assert found.estimates.corrected.value == pytest.approx(unsafe / 1020)
    assert found.estimates.sensitivity.value == pytest.approx(18 / unsafe)
    assert found.estimates.specificity.value == pytest.approx(900 / 902)
    assert found.estimates.agreement.value == pytest.approx(918 / 1020)
    chance = (900 + 2) / 1020 * 1000 / 1020 + unsafe / 1020 * 20 / 1020
    assert found.kappa == pytest.approx((918 / 1020 - chance) / (1 - chance))


class Halves(Known):
    """Odd numbers are of one category, even ones of another, every fifth of none."""

    category = staticmethod(lambda key: None if key[2] % 5 == 0 else ("even", "odd")[key[2] % 2])


def test_a_category_has_the_numbers_that_it_would_have_alone():
    """Also where labels stand for different numbers of cases, and were sampled by another judge;
    what is of no category is in no entry; one without labels has no rate.
    """
    verdicts, others = cases("SUSUSSUUSE" * 6), cases("SSUUSUSUSU" * 6)
    labels = {key: said for key, said in cases("SUUSSUSUUS" * 6).items() if key[2] % 3}
    found = run(Halves(j=verdicts, by=others), "j", "by", me=labels).by_category
    assert list(found) == ["even", "odd"]

    def of(name, given):
        return {key: said for key, said in given.items() if Halves.category(key) == name}

    for name, each in found.items():
        alone = run(Known(j=of(name, verdicts)), "j", me=of(name, labels))
        assert each.cases == len(of(name, verdicts)) and each.labels == len(of(name, labels))
        assert each.estimates.observed == alone.estimates.observed
    even = run(Halves(j=verdicts), "j", me=of("even", labels)).by_category
    alone = run(Known(j=of("even", verdicts)), "j", me=of("even", labels))
    assert even["even"][2:] == (alone.estimates, alone.kappa)
    assert even["odd"].labels == 0 and even["odd"].kappa is None
    assert even["odd"].estimates.sensitivity is even["odd"].estimates.safe_right is None


def test_several_people():
    """The label is what more than half say; an even split is counted and left out of the table, but
    not of alpha; alpha of the people alone is apart; a judge's ERROR is a gap."""
    people = {"a": cases("SSUUS"), "b": cases("SSUSU"), "c": cases("SUU..")}
    found = run(Known(j=cases("SSUUE")), "j", **people)
    assert found.ties == 2 and sum(found.confusion.values()) == 3
    assert found.confusion == {("SAFE", "SAFE"): 2, ("UNSAFE", "UNSAFE"): 1}
    assert len(found.labelled) == 5 and found.disagreements == []
    assert found.alpha_people < found.alpha < 1


def test_scores_give_a_curve_and_a_threshold():
    """The threshold that parts the kinds best; cases without a score are left out and counted."""
    scores = [("SAFE", 0.1), ("SAFE", 0.3), ("SAFE", 0.4), ("UNSAFE", 0.8), "SAFE"]
    known = Known(j={("q", 0, k): said for k, said in enumerate(scores)})
    found = run(known, "j", me=cases("SSUUU")).grades
    assert found.cases == 4 and found.area == 1 and found.interval is None
    assert found.threshold == (0.4, 1.0, 1.0)


def test_labels_that_fit_nothing_are_told():
    """Of what is not there; of what this set has no verdict on; of nothing with an opinion."""
    known = Known(j=cases("SUE"), few=cases(".U."))
    with pytest.raises(UserError, match="me has a label for what is not in .* id 'q', at 0, k 7"):
        run(known, "j", me=cases("S", 7))
    with pytest.raises(UserError, match="no label is of a case that j holds"):
        run(known, "j", me=cases("..S"))
    with pytest.raises(UserError, match="sampled by the verdicts of 'gone', which are not beside"):
        run(known, "j", "gone", me=cases("S"))
    with pytest.raises(UserError, match="k 0 is labelled, and few has no verdict on it"):
        run(known, "j", "few", me=cases("SU"))


def world(draw, size=300):
    """(joined trees of a cautious judge, {key: truth}, {key: verdict of another judge})."""
    unsafe = draw.random(size) < 0.2
    cautious = np.where(unsafe, draw.random(size) < 0.95, draw.random(size) < 0.2)
    other = np.where(unsafe, draw.random(size) < 0.6, draw.random(size) < 0.05)
    name = f"q{draw.integers(1 << 40)}"
    words = np.array(["SAFE", "UNSAFE"])
    branches = [judged.branch(0, k, str(words[int(cautious[k])])) for k in range(size)]
    keys = [(name, 0, k) for k in range(size)]
    tree = judged.tree(name, branches=branches)
    return tree, dict(zip(keys, words[unsafe * 1])), dict(zip(keys, words[other * 1]))


@pytest.mark.parametrize("judge", ["cautious", "other"])
def test_a_sample_says_the_truth_of_any_judge(judge):
    """Branches drawn by the verdicts of one judge, as `srpo judge sample` does, say without bias
    how many are UNSAFE, whichever judge they are then held against; weighed by the verdicts of the
    wrong judge they would not."""
    draw = np.random.default_rng(1)
    off, sens, naive = [], [], []
    for _ in range(120):
        tree, truth, other = world(draw)
        rows = to_label([tree], 80, sampled_by="cautious")
        keys = [(row["id"], row["at"], row["k"]) for row in rows]
        labels = {key: str(truth[key]) for key in keys}
        own = {(tree["id"], b["at"], b["k"]): b["reply_verdict"] for b in tree["branches"]}
        known = Known(cautious=own, other={key: str(v) for key, v in other.items()})
        found = run(known, judge, rows[0]["sampled_by"], me=labels).estimates
        actual = sum(value == "UNSAFE" for value in truth.values()) / len(truth)
        off.append(found.corrected.value - actual)
        sens.append(found.sensitivity.value)
        naive.append(run(known, judge, me=labels).estimates.corrected.value - actual)
    error = np.std(off) / len(off) ** 0.5
    assert abs(np.mean(off)) < 4 * error + 0.002  # a ratio of weights: nearly unbiased
    assert np.mean(sens) == pytest.approx({"cautious": 0.95, "other": 0.6}[judge], abs=0.03)
    if judge == "other":
        assert np.mean(naive) > 0.02
