"""Words in common: the measures that the rule arbiter's thresholds are about."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from srpo_jax.arbiter.word_match import best, common, coverage, has, similarity, words

TEXTS = st.lists(st.sampled_from("abc"), max_size=6).map(tuple)


def test_what_does_not_count_in_a_word():
    """Case, punctuation, apostrophes and the plural s of words of four letters and more."""
    found = words("  A Pose's risks_are: SO-so, as gas does!")
    assert " ".join(found) == "a pose risk are so so as gas doe"
    assert words("...") == ()


@given(TEXTS, TEXTS)
def test_measures_are_those_of_their_definitions(a, b):
    """Against all subsequences of short texts."""
    within = {part for n in range(len(b) + 1) for part in itertools.combinations(b, n)}
    longest = max(
        n for n in range(len(a) + 1) for part in itertools.combinations(a, n) if part in within
    )
    assert common(a, b) == longest
    assert similarity(a, b) == (2 * longest / (len(a) + len(b)) if a or b else 0)
    assert coverage(a, b) == (longest / len(a) if a else 0)
    assert has(b, a) == (bool(a) and "".join(a) in "".join(b))


def test_the_best_is_one_and_near_enough():
    """A border counts as near enough; two equal best are none."""
    known = {"x": ("a", "b", "c"), "y": ("a", "b", "d"), "z": ("e",)}
    assert best(("a", "b", "d", "d"), known, 6 / 7) == "y"
    assert best(("a", "b", "d", "d"), known, 0.86) is None
    assert best(("a", "b"), known, 0.1) is None
    assert best(("e",), {"z": ("e",)}, 1) == "z"
