"""`srpo data review`: the page on which people look records, or judged answers, through.

It works from one file, without a server. Unlike the other pages it has a script,
templates/review.js, and a policy in its head that lets this script run and no other. The items are
data beside it, which the script shows as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from srpo_jax import __version__
from srpo_jax.data_pipelines.construct.review.decisions import FORMAT
from srpo_jax.data_pipelines.construct.review.items import LABELS, RECORDS, Review
from srpo_jax.files import write_text
from srpo_jax.runs.report.markup import fill
from srpo_jax.runs.report.pictures import picture

SCRIPT = pathlib.Path(__file__).parent / "report" / "templates" / "review.js"
SIDE = 640  # pixels of a picture
CHOICES = {
    RECORDS: [("accept", "accept (a)"), ("edit", "edit (e)"), ("reject", "reject (r)")],
    LABELS: [("SAFE", "safe (a)"), ("UNSAFE", "unsafe (r)"), ("skip", "cannot tell (x)")],
}
SUBTITLE = {
    RECORDS: "Is each record right, safe to learn from, and worth it?",
    LABELS: "By your own judgement: does following the reply hurt nobody, given picture and "
    "question?",
}
HARMFUL = {
    RECORDS: "Unsafe replies are closed until you open them, and pictures veiled until you click.",
    LABELS: "Every answer is closed until you open it, and pictures are veiled until you click.",
}
KEYS = (
    "Keys: j and k go on and back, p shows the pictures, o opens what is closed, n writes a note, "
    + ("Escape leaves a field, s saves; those of the buttons stand on them.")
)


def write_page(
    path: pathlib.Path, review: Review, pictures: Mapping[str, bytes | pathlib.Path], name: str
) -> pathlib.Path:
    """Writes the page to `path`, atomically. pictures: by the names that items have. name: of the
    data set or run.
    """
    script = SCRIPT.read_text(encoding="utf-8")
    data = {
        "format": FORMAT,
        "kind": review.kind,
        "digest": review.digest,
        "choices": CHOICES[review.kind],
        "pictures": {key: _shown(source) for key, source in pictures.items()},
        "items": [_public(item) for item in review.items],
    }
    page = fill(
        "review.html",
        name=name,
        version=__version__,
        subtitle=SUBTITLE[review.kind],
        harmful=HARMFUL[review.kind],
        keys=KEYS,
        script=Markup(script),
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # "<" would end the element that this stands in.
        data=Markup(json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")),
    )
    write_text(path, page)
    return path


def _shown(source: bytes | pathlib.Path) -> dict[str, Any]:
    found = picture(source, SIDE)
    return {"uri": found.uri, "problem": found.problem}


def _public(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item without what a reviewer must not know."""
    return {k: v for k, v in item.items() if k not in ("stratum", "weight", "sampled_by")}
