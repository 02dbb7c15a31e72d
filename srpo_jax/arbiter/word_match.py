"""Comparing short texts by their words: the tolerant half of the rule arbiter.

Case, punctuation, spacing and a plural s do not count. Everything else does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TypeVar

Words = tuple[str, ...]
Key = TypeVar("Key")


def words(text: str) -> Words:
    """Lower-case words without punctuation; a final s of longer words is dropped."""
    found = re.findall(r"[^\W_]+", text.lower().replace("'", ""))
    return tuple(w[:-1] if len(w) > 3 and w.endswith("s") else w for w in found)


def has(text: Words, phrase: Words) -> bool:
    """True if the words of `phrase` stand in `text` one after the other."""
    n = len(phrase)
    return n > 0 and any(text[i : i + n] == phrase for i in range(len(text) - n + 1))


@functools.lru_cache(1 << 16)  # texts are held against the same phrases again and again
def common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence of words."""
    row = [0] * (len(b) + 1)
    for x in a:
        left = 0  # row[j] of the line above, before it is overwritten
        for j, y in enumerate(b):
            above = row[j + 1]
            row[j + 1] = left + 1 if x == y else max(above, row[j])
            left = above
    return row[-1]


def similarity(a: Words, b: Words) -> float:
    """2 * common / (len(a) + len(b)): 1 for equal texts, 0 without a common word."""
    return 2 * common(a, b) / (len(a) + len(b)) if a or b else 0.0


def coverage(phrase: Words, text: Words) -> float:
    """The share of `phrase` whose words stand in `text` in order, gaps allowed."""
    return common(phrase, text) / len(phrase) if phrase else 0.0


def best(text: Words, candidates: Mapping[Key, Words], least: float) -> Key | None:
    """The one candidate most similar to `text`; None below `least` or when two are equal best."""
    scores = sorted(
        ((similarity(text, c), i) for i, c in enumerate(candidates.values())), reverse=True
    )
    if scores[0][0] < least or (len(scores) > 1 and scores[1][0] == scores[0][0]):
        return None
    return list(candidates)[scores[0][1]]
