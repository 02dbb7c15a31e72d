"""How unsafe a judge holds a reply, from the log-probabilities of its labels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from srpo_jax.arbiter.chat.messages import Token
from srpo_jax.arbiter.prompted.rubric import Part
from srpo_jax.arbiter.verdict import Verdict

_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]')


def p_unsafe(text: str, tokens: Sequence[Token], part: Part, label: str) -> float | None:
    """e^lu / (e^lu + e^ls), where lu and ls are the log-probabilities of all ways to begin a label
    that means UNSAFE, or SAFE, at the token where the label in `text` begins.

    None when they cannot be told: the tokens are not the text, that token has no alternatives, one
    that was likely begins labels of both kinds, or none begins either kind.
    """
    start = _label_start(text, part.key, label)
    if start is None:
        return None
    place = 0
    for token, others in tokens:
        if not text.startswith(token, place):
            return None
        if place + len(token) > start:
            return _share(others or {}, text[place:start], part)
        place += len(token)
    return None


def _label_start(text: str, key: str, label: str) -> int | None:
    """Where the value of a key of the outermost object begins; None unless it stands there once and
    its value is the label.
    """
    depth, starts = 0, []
    for found in _STRING_OR_BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 1 and found[0] == f'"{key}"':
            value = re.compile(rf'\s*:\s*"(?={re.escape(label)}")').match(text, found.end())
            starts += [value.end()] if value else []
    return starts[0] if len(starts) == 1 else None


def _share(others: dict[str, float], before: str, part: Part) -> float | None:
    """before: what stands in the token in front of the label."""
    mass = {Verdict.SAFE: 0.0, Verdict.UNSAFE: 0.0}
    for text, logprob in others.items():
        begun = text.removeprefix(before)
        if not text.startswith(before) or not begun or not math.isfinite(logprob) or logprob > 0:
            continue
        meant = {
            found.means
            for found in part.labels
            if found.name.startswith(begun)
            or begun.startswith(f'{found.name}"')
            or begun == found.name
        }
        if len(meant) > 1:
            return None
        for verdict in meant & set(mass):
            mass[verdict] += math.exp(logprob)  # type: ignore[index]
    total = sum(mass.values())
    return mass[Verdict.UNSAFE] / total if total else None
