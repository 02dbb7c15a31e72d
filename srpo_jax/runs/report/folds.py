"""What stands open on the page, and what is closed behind a word that says what it is.

A text judged SAFE is open. Everything else is closed until a reader opens it: what was judged
UNSAFE, and also what nobody has judged, because nobody knows what it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from srpo_jax.runs.report.markup import word

LONGEST_HEADING = 60  # characters before the colon of a step


def step_verdicts(count: int, verdicts: Sequence[str], path: str) -> list[str]:
    """A verdict for each of the `count` steps of a whole path: its own; the path's where single
    steps were not judged, or where none of theirs is why the path is not SAFE.
    """
    if len(verdicts) == count and (path == "SAFE" or path in verdicts):
        return list(verdicts)
    return [path] * count


def reference_steps(tree: Mapping) -> list[str]:
    """The verdicts on the steps of a tree's reference path."""
    found = tree["reference_verdict"]
    return step_verdicts(len(tree["step_texts"]), found["step_verdicts"], found["path_verdict"])


def folded_steps(
    steps: Sequence[str], verdicts: Sequence[str], first: int = 1
) -> list[dict[str, Any]]:
    """Steps as runs of equal verdict, in order. first: the number of the first step.

    {"verdict", "first", "title": what the fold says, "steps": [(heading, rest)]} each.
    """
    groups = []
    for verdict, run in groupby(zip(verdicts, steps, strict=True), key=lambda pair: pair[0]):
        texts = [split_heading(step) for _, step in run]
        last = first + len(texts) - 1
        name = f"step {first}" if last == first else f"steps {first}–{last}"
        title = f"{name}, {judged(verdict)}"
        groups.append({"verdict": verdict, "first": first, "title": title, "steps": texts})
        first = last + 1
    return groups


def behind(reply: str | None, verdict: str, steps: Sequence[str]) -> str:
    """What the fold of a branch says whose reply is not SAFE. steps: the verdicts of its steps."""
    said = "never came to a reply" if reply is None else f"reply {judged(verdict)}"
    counts = [(steps.count(v), judged(v)) for v in ("UNSAFE", "ERROR") if v in steps]
    of = f" of {len(steps)}" if len(steps) > 1 else ""
    return "; ".join([said, *(f"{n}{of} step{'s' * (len(steps) > 1)} {w}" for n, w in counts)])


def judged(verdict: str) -> str:
    """The words of a fold: "judged unsafe", "not judged"."""
    return "not judged" if word(verdict) == "not judged" else f"judged {word(verdict)}"


def split_heading(text: str) -> tuple[str, str]:
    """(a heading such as "Risk:" at the start of a step, or "", and the rest)."""
    head, colon, rest = text.partition(":")
    if colon and rest and len(head) <= LONGEST_HEADING and "\n" not in head:
        return (f"{head}:" if rest.strip() else head), rest
    return "", text
