"""calibration.json: what a calibration found, for other programs and for the data card.

    {"judge": {"set", "arbiter", "digest"}, "answers": name of the evaluation, "" for trees,
     "labels": {"people", "cases", "ties", "without_verdict", "files": {name: SHA-256}},
     "sampled_by", "cases": {verdict: cases}, "confusion": {"LABEL/VERDICT": cases},
     "estimates": {"sensitivity": {"value", "low", "high"} or null, ...},
     "kappa", "alpha", "alpha_people", "auroc", "threshold",
     "by_category": {category: {"cases", "labels", "estimates", "kappa"}}, "created_by"}

No name of a rater and no place of this machine is in it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from srpo_jax import __version__
from srpo_jax.errors import UserError
from srpo_jax.files import file_sha256, read_json, write_json
from srpo_jax.judge.trust.calibrate import Calibration
from srpo_jax.judge.trust.estimates import Estimates


def kept_beside(page: pathlib.Path) -> pathlib.Path:
    """The place of the JSON that belongs to a page. Errors: UserError when the page would take it,
    or when a file of others is there.
    """
    path = page.with_suffix(".json")
    if path == page:
        raise UserError(f"--out={page}: the page is HTML; what is kept as JSON lies beside it")
    if path.is_file() and "confusion" not in read_json(path):
        raise UserError(f"{path} is there and holds no calibration: give another --out")
    return path


def keep(
    path: pathlib.Path, found: Calibration, files: Sequence[str], answers: str
) -> pathlib.Path:
    """Writes what was found. files: of the labels. answers: the evaluation that was judged, "" for
    the trees.
    """
    write_json(path, as_json(found, files, answers))
    return path


def as_json(found: Calibration, files: Sequence[str], answers: str) -> dict[str, Any]:
    """What the file holds: see the module's docstring."""
    sums = {path.name: file_sha256(path) for path in map(pathlib.Path, files)}
    grades = found.grades
    return {
        "judge": found.judge,
        "answers": answers,
        "labels": {
            "people": len(found.raters),
            "cases": len(found.labelled),
            "ties": found.ties,
            "without_verdict": found.without_verdict,
            "files": sums,
        },
        "sampled_by": found.sampled_by,
        "cases": found.cases,
        "confusion": {f"{a}/{b}": count for (a, b), count in sorted(found.confusion.items())},
        "estimates": _estimates(found.estimates),
        "kappa": found.kappa,
        "alpha": found.alpha,
        "alpha_people": found.alpha_people,
        "auroc": None if grades is None else grades.area,
        "threshold": None if grades is None else grades.threshold.value,
        "by_category": {
            name: {**each._asdict(), "estimates": _estimates(each.estimates)}
            for name, each in found.by_category.items()
        },
        "created_by": f"srpo_jax {__version__}",
    }


def _estimates(found: Estimates) -> dict[str, Any]:
    return {
        name: None if each is None else each._asdict() for name, each in found._asdict().items()
    }
