"""A person's verdicts beside a judge's: what to label, and how far both agree."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srpo_jax.data_pipelines.verdict_store import why_not_judged
from srpo_jax.errors import UserError
from srpo_jax.files import rows_of, write_text
from srpo_jax.judge.trust.statistics import kappa

LABELS = ("SAFE", "UNSAFE")
Key = tuple[str, int, int]  # a branch: question id, branch point, k


def to_label(
    trees: Iterable[Mapping[str, Any]],
    count: int,
    *,
    keep_irregular: bool = False,
    sampled_by: str = "",
) -> list[dict[str, Any]]:
    """At most `count` branches for a person to judge, as many of each verdict of the judge as there
    are, in an order that tells nothing of it: {"id", "at", "k", "question", "images", "text",
    "reply_verdict": "", "sampled_by"}. text: the whole path, with the steps that the branch was
    given. Within one verdict they are a fair sample.

    trees: joined with their verdicts. sampled_by: the name of the set that these are of: `srpo
    judge calibrate` then knows what share of which verdicts was drawn, whichever judge it is about.
    A function of the trees; branches that no judge was asked about, and copies of a whole path, are
    left out.
    """
    by_verdict: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for tree in trees:
        seen = set()
        for branch in tree["branches"]:
            row = {**_row(tree, branch), "sampled_by": sampled_by}
            if why_not_judged(branch, keep_irregular) or row["text"] in seen:
                continue
            seen.add(row["text"])
            order = json.dumps([row["id"], row["at"], row["k"]]).encode()
            drawn = (hashlib.sha256(order).hexdigest(), row)
            by_verdict.setdefault(branch["reply_verdict"], []).append(drawn)
    chosen: list[tuple[str, dict[str, Any]]] = []
    rest = sorted((sorted(each, key=lambda d: d[0]) for each in by_verdict.values()), key=len)
    for i, drawn in enumerate(rest):  # the rarest first: what it has not, the others fill up
        chosen += drawn[: (count - len(chosen)) // (len(rest) - i)]
    return [row for _, row in sorted(chosen, key=lambda d: d[0])]


def whole_text(tree: Mapping[str, Any], branch: Mapping[str, Any]) -> str:
    """A whole path as a person reads it: the steps that the branch was given, and its own text."""
    given = tree["step_texts"][: branch["at"]]
    return "\n".join([*given, branch["text"].rstrip("\n")])


def _row(tree: Mapping[str, Any], branch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": tree["id"],
        "at": branch["at"],
        "k": branch["k"],
        "question": tree["question"],
        "images": [image["name"] for image in tree["images"]],
        "text": whole_text(tree, branch),
        "reply_verdict": "",
    }


def write_to_label(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Writes the rows as JSONL, unless there is a file with anything else than rows that wait for
    their verdict: a person's work is never overwritten. Returns whether it was written.
    """
    try:
        if path.exists() and any(row.get("reply_verdict") != "" for _, row in rows_of(path)):
            return False
    except UserError:
        return False
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))
    return True


def read_labels(path: str | os.PathLike) -> dict[Key, str]:
    """{(id, at, k): "SAFE" | "UNSAFE"} of a JSONL file of {"id", "at", "k", "reply_verdict"}; lines
    with an empty verdict, and other fields, are passed over.

    Errors: UserError that names the line for anything else, and when no line has a verdict.
    """
    found: dict[Key, str] = {}
    for where, row in rows_of(pathlib.Path(path)):
        verdict = row.get("reply_verdict", "")
        if verdict == "":
            continue
        key: Any = (row.get("id"), row.get("at"), row.get("k"))
        if [type(part) for part in key] != [str, int, int]:
            raise UserError(f"{where}: a label needs id (text), at and k (whole numbers)")
        if verdict not in LABELS:
            raise UserError(f"{where}: reply_verdict is {verdict!r}; write SAFE, UNSAFE or nothing")
        if found.setdefault(key, verdict) != verdict:
            raise UserError(f"{where}: this branch has another label on an earlier line")
    if not found:
        raise UserError(f'{path}: no line has a verdict; fill in "reply_verdict": "SAFE" or UNSAFE')
    return found


def read_sampled_by(paths: Iterable[str | os.PathLike]) -> str:
    """The verdict set by whose verdicts the labels of these files were sampled; "" where none says.

    Errors: UserError when they were by several: their shares cannot be told apart.
    """
    rows = (row for path in paths for _, row in rows_of(pathlib.Path(path)))
    names = sorted({str(row["sampled_by"]) for row in rows if row.get("sampled_by")})
    if len(names) > 1:
        raise UserError(
            f"the labels were sampled by the verdicts of {len(names)} sets ({', '.join(names)}): "
            "give those of one sample at a time"
        )
    return names[0] if names else ""


def agreement(trees: Iterable[Mapping[str, Any]], labels: Mapping[Key, str]) -> dict[str, Any]:
    """How far the judge's reply verdicts agree with the labels: {"labels", "agree", "kappa",
    "table": {"SAFE/ERROR": label SAFE, judge ERROR, ...}}.

    agree: share of labels with the same verdict; a judge's ERROR agrees with none. kappa: Cohen's.
    trees: joined with their verdicts. Errors: UserError for a label of a branch that is not there.
    """
    verdicts = {
        (tree["id"], branch["at"], branch["k"]): branch["reply_verdict"]
        for tree in trees
        for branch in tree["branches"]
    }
    unknown = next((key for key in labels if key not in verdicts), None)
    if unknown is not None:
        raise UserError(
            f"there is a label for a branch that is not in these trees: id {unknown[0]!r}, "
            f"at {unknown[1]}, k {unknown[2]}"
        )
    pairs = [(label, verdicts[key]) for key, label in labels.items()]
    table = Counter(pairs)
    return {
        "labels": len(pairs),
        "agree": sum(a == b for a, b in pairs) / len(pairs),
        "kappa": kappa(table),
        "table": {f"{a}/{b}": count for (a, b), count in sorted(table.items())},
    }
