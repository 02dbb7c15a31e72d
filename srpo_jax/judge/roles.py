"""The two roles of a judge: one labelled what a run was trained on, one scored its answers.

They stand beside each other wherever scores do. The same model in both roles is said: training
moves a policy towards what its judge calls safe, so that judge's scores say less than another's.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_json

OWN_TEACHER = "judged by its own teacher"
WIDEST = 50  # characters of a cell: two of them fit into 120 columns
_DIGEST = re.compile(r"@[0-9a-f]{16}$")
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def training_judge(workdir: pathlib.Path) -> dict[str, Any] | None:
    """{"set", "arbiter", "digest", "spec"} of the judge whose verdicts a run was trained on, from
    its config.json; None when there is no run, or it was trained on none.
    """
    path = workdir / "config.json"
    try:
        found = (read_json(path).get("data") or {}).get("verdicts") if path.is_file() else None
    except (UserError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def models(judge: Mapping[str, Any]) -> dict[str, str]:
    """The chat models that a judge asks, wherever its spec names them: the last part of each name,
    which is the same for a model and for a folder that it is in, by itself in small letters.
    """
    found = (name.replace("\\", "/").rstrip("/") for name in _models(judge.get("spec")))
    last = (name.rpartition("/")[2] for name in found)
    return {name.lower(): name for name in last}


def _models(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "model" and isinstance(inner, str):
                if inner.strip():
                    yield inner
            else:
                yield from _models(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _models(inner)


def shared(training: Mapping[str, Any] | None, scoring: Mapping[str, Any] | None) -> str:
    """What is the same in both roles: a chat model, or the judge as a whole by its digest where one
    of them asks none. "" when nothing is, or when one of them is not known.
    """
    if not training or not scoring:
        return ""
    theirs, ours = models(training), models(scoring)
    if theirs and ours:
        return ", ".join(
            name for key, name in ours.items() if any(_alike(key, other) for other in theirs)
        )
    digest = scoring.get("digest")
    return str(scoring.get("arbiter")) if digest and digest == training.get("digest") else ""


def own_teacher(scores: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> bool:
    """Whether the judge of these scores also judged what the policy was trained on: then they are
    never the headline. training: whose verdicts these were, where the scores do not say.
    """
    return bool(shared(scores.get("training_judge") or training, scores.get("judge")))


def own_chooser(scores: Mapping[str, Any]) -> str:
    """What is the same in who chose the answers among several and who scored them, as of shared; ""
    too where nobody chose.
    """
    return shared((scores.get("chosen") or {}).get("judge"), scores.get("judge"))


def choice_warning(scores: Mapping[str, Any]) -> str:
    """One sentence for people when something is the same in choosing and scoring, else ""."""
    same = own_chooser(scores)
    if not same:
        return ""
    return (
        f"{one_line(same, 200)} both chose these answers among several and scored them, so the "
        "scores say less than those of another judge would."
    )


def _alike(one: str, other: str) -> bool:
    """Whether two names may be of one model. One that ran here has its digest behind an @, which
    says more than its name where both have one.
    """
    plain, also = (_DIGEST.sub("", name) for name in (one, other))
    return one == other or (plain == also and (plain == one or also == other))


def warning(training: Mapping[str, Any] | None, scoring: Mapping[str, Any] | None) -> str:
    """One sentence for people when something is the same in both roles, else ""."""
    same = shared(training, scoring)
    if not same:
        return ""
    return (
        f"{one_line(same, 200)} judged both what the run was trained on and these answers: training"
        " moves a policy towards what its judge calls safe, so the scores say less than those of"
        " another judge would."
    )


def side_by_side(
    training: Mapping[str, Any], training_set: str, scoring: Mapping[str, Any], scoring_set: str
) -> str:
    """Both judges as a table for a terminal."""
    rows = [("", "trained on", "scored by")]
    for name in ("arbiter", "digest"):
        rows.append((name, str(training.get(name)), str(scoring.get(name))))
    theirs, ours = (", ".join(models(judge).values()) for judge in (training, scoring))
    if theirs or ours:
        rows.append(("model", theirs or "-", ours or "-"))
    rows.append(("verdict set", training_set, scoring_set))
    cells = [[one_line(cell, WIDEST) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in (0, 1)]
    return "\n".join(
        f"  {first:<{widths[0]}}  {second:<{widths[1]}}  {third}".rstrip()
        for first, second, third in cells
    )


def in_red(text: str) -> str:
    """The text in red where standard output is a terminal that has colours and NO_COLOR is not
    set; elsewhere as it is.
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"{_RED}{text}{_PLAIN}"
