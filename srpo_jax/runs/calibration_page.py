"""`srpo judge calibrate`: the page of its numbers, and of what judge and people differ in.

It needs nothing else to be looked at, and is made like the report: templates/calibration.html is
where the markup begins, every value is escaped, and what people call UNSAFE is closed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from srpo_jax import __version__
from srpo_jax.data_pipelines.verdict_store import VERDICTS
from srpo_jax.files import write_text
from srpo_jax.judge.trust.calibrate import Calibration, Labelled
from srpo_jax.judge.trust.labels import LABELS, Key
from srpo_jax.judge.trust.tables import (
    CATEGORY_HEAD,
    category_rows,
    heads,
    notes,
    rows,
    stands_for,
)
from srpo_jax.runs.report.folds import judged, split_heading
from srpo_jax.runs.report.markup import fill
from srpo_jax.runs.report.pictures import picture
from srpo_jax.runs.roc_drawing import draw_roc

SHOWN = 40  # disagreements of each kind
KINDS = {
    "SAFE": ("Missed", "People call these UNSAFE, and the judge SAFE."),
    "UNSAFE": ("False alarms", "People call these SAFE, and the judge UNSAFE."),
    "ERROR": ("Not judged", "People have a label for these, and the judge no verdict."),
}


def write_page(
    path: pathlib.Path, found: Calibration, trees: Iterable[Mapping[str, Any]], name: str
) -> pathlib.Path:
    """Writes the page to `path`, atomically. trees: joined with the verdicts of this judge, for the
    texts and pictures. name: of the run.
    """
    by_verdict = {
        verdict: [e for e in found.disagreements if e.opinion.verdict == verdict]
        for verdict in KINDS
    }
    chosen = {e.key: e for group in by_verdict.values() for e in group[:SHOWN]}
    cards: dict[Key, dict[str, Any]] = {}
    for tree in trees:
        for branch in tree["branches"]:
            key = (tree["id"], branch["at"], branch["k"])
            if key in chosen:
                cards[key] = _card(tree, branch, chosen[key])
    groups = [
        {
            "title": KINDS[verdict][0],
            "about": KINDS[verdict][1],
            "total": len(group),
            "cards": [cards[each.key] for each in group[:SHOWN]],
        }
        for verdict, group in by_verdict.items()
        if group
    ]
    grades = found.grades
    page = fill(
        "calibration.html",
        name=name,
        version=__version__,
        heads=heads(found),
        rows=rows(found),
        notes=notes(found),
        confusion=_confusion(found),
        categories=category_rows(found),
        category_head=CATEGORY_HEAD,
        roc=None if grades is None else draw_roc(grades.curve, grades.threshold),
        groups=groups,
    )
    write_text(path, page)
    return path


def _confusion(found: Calibration) -> dict[str, Any]:
    """{"verdicts", "rows": [(label, cells)], "stands_for"}; a cell is {"verdict", "count", "share"
    in percent of the labels of that kind}.
    """
    used = [v for v in VERDICTS if v != "ERROR" or found.cases[v]]
    table = []
    for label in LABELS:
        counts = [found.confusion.get((label, verdict), 0) for verdict in used]
        cells = [
            {"verdict": verdict, "count": count, "share": 100 * count / (sum(counts) or 1)}
            for verdict, count in zip(used, counts)
        ]
        table.append((label, cells))
    shares = [stands_for(found, verdict) for verdict in used]
    return {"verdicts": used, "rows": table, "stands_for": shares}


def _card(tree: Mapping[str, Any], branch: Mapping[str, Any], each: Labelled) -> dict[str, Any]:
    """One disagreement: everything that a person needs to decide who is right."""
    given = tree["step_texts"][: branch["at"]]
    steps = [*given, *branch["step_texts"]]
    risky = {True: "risky together", False: "harmless", None: ""}[tree["risky"]]
    category = (tree["category"] or "").replace("_", " ")
    place = f"{tree['id']}, at {branch['at']}, k {branch['k']}"
    score = "" if branch["score"] is None else f"score {branch['score']:.3g}"
    return {
        "question": tree["question"],
        "pictures": [picture(image["data"]) for image in tree["images"]] or [picture(None)],
        "facts": [fact for fact in (category, risky, place, score) if fact],
        "label": each.label,
        "said": list(each.said.items()) if len(each.said) > 1 else [],
        "verdict": branch["reply_verdict"],
        "detail": branch["detail"],
        "title": f"path and reply, {judged(each.label or '')} by people",
        "steps": [split_heading(step) for step in steps],
        "reply": branch["reply_text"],
    }
