"""The data card of a folder: README.md, from what lies there and nothing else."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.exchange.importing import ABOUT
from srpo_jax.data_pipelines.exchange.licenses import told
from srpo_jax.data_pipelines.verdict_store import FOLDER, JUDGE
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_json, write_text

FILE = "README.md"
MARK = "<!-- data card by srpo_jax -->"  # on its first line: what we wrote we may write again
MADE, REVIEWED = "construct.json", "reviewed.json"
CARE = [
    "## Before it is passed on",
    "",
    "* Consent: nothing here records whether people in the pictures agreed to be shown.",
    "* Terms: the texts are of the models above; what their providers forbid (as training another",
    "  model on them) holds for whoever uses this.",
    "* Where it has unsafe replies, they are there to be told from safe ones, not to be followed.",
    "",
]
RUN, SUMMARY = "run.json", "summary.json"
CALIBRATIONS = "calibration*.json"
_MARKUP = re.compile(r"[\\`*\[\]<>#|~&!]")
COUNTS = {
    "rows": "rows read",
    "bad_rows": "rows left out, as they cannot be used",
    "items": "questions",
    "trees": "of them with a reference path",
    "answers": "answers",
    "labelled": "of them labelled",
    "pairs": "pairs of a safe and an unsafe answer",
    "pictures": "different pictures",
}


def data_card(folder: pathlib.Path) -> str:
    """The card: where the data comes from, what was filtered, licences, models, prompts and judges
    by their digests, and what people say of the labels. Errors: UserError for a folder without an
    import, trees or verdicts.
    """
    parts = [_imported(folder), _constructed(folder), _sampled(folder), _judged(folder)]
    if not any(parts):
        raise UserError(
            f"{folder}: there is no import.json, no construct.json, no trees/run.json and no "
            "verdicts"
        )
    lines = [MARK, f"# Data card: {words(folder.resolve().name)}", ""]
    lines += [line for part in parts for line in part]
    lines += _reviewed(folder)
    return "\n".join(lines)


def release_card(place: pathlib.Path, name: str, about: Mapping[str, Any]) -> str:
    """The card of a release of what lies in `place`: what is in it and what is not, the card of
    what it was made of, licences, consent, terms and reviewers. about: release.json.
    """
    lines = [MARK, f"# Data card: {words(name)}", "", f"`{about['canary']}`", ""]
    lines += ["Models must not be trained on a text with this canary by accident.", ""]
    lines += ["## What is in it", "", f"* {about['records']} records", ""]
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in about["verdicts"].items())
    lines[-1:] = [f"* {about['branches']} branches ({verdicts})", ""] if verdicts else [""]
    if about["include_harmful"]:
        lines += [
            "**It holds unsafe replies and texts of branches.** With its labels swapped it would",
            "teach harm: pass it on only to whom you know, and not to train on the wrong side.",
            "",
        ]
    else:
        lines += [
            f"Not in it: {about['unsafe_replies']} unsafe replies, the texts of branches, and what "
            "judges wrote.",
            "Their SHA-256 is, with every verdict.",
            "",
        ]
    parts = [_imported(place), _constructed(place), _sampled(place), _judged(place)]
    lines += [line for part in parts for line in part]
    if not (place / MADE).is_file():
        lines += CARE
    lines += ["## Licences, record by record", "", "licenses.jsonl has them, with sources.", ""]
    lines += [f"* {words(told(name))}: {n} records" for name, n in about["licenses"].items()]
    if about["allowed"]:
        named = ", ".join(words(each) for each in about["allowed"])
        lines.append(f"* passed on because whoever released it said so: {named}")
    return "\n".join([*lines, "", *_reviewed(place)])


def write_card(folder: pathlib.Path, out: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the card, by default to README.md of the folder. UserError for a file of others."""
    path = out or folder / FILE
    if not _is_ours(path):
        raise UserError(f"{path} is there and is no data card of ours: name another by --out")
    write_text(path, data_card(folder))
    return path


def check_card(folder: pathlib.Path) -> None:
    """Errors: UserError for a folder in which a file of others stands in the card's place."""
    if not _is_ours(folder / FILE):
        raise UserError(f"{folder / FILE} is no data card of ours: name another folder")


def _is_ours(path: pathlib.Path) -> bool:
    return not path.is_file() or path.read_text(errors="replace").startswith(MARK)


def _imported(folder: pathlib.Path) -> list[str]:
    """Origin, filters and licences of an import."""
    if not (folder / ABOUT).is_file():
        return []
    about = read_json(folder / ABOUT)
    counts = about.get("counts", {})
    lines = ["## Where it comes from", "", f"* format: {words(about.get('title', ''))}"]
    lines += [f"* source: {words(about.get('source', ''))}"]
    lines += [f"* {words(name)}: SHA-256 `{words(d)}`" for name, d in about["files"].items()]
    if about.get("limit"):
        lines.append(f"* the first {about['limit']} rows")
    lines += ["", "## What was taken", "", "| | number |", "| --- | --- |"]
    lines += [f"| {said} | {counts.get(name, 0)} |" for name, said in COUNTS.items()]
    if unread := counts.get("unread"):
        named = ", ".join(f"{words(name)} ({n})" for name, n in unread.items())
        lines += ["", f"Fields that were kept and not used: {named}."]
    if bad := counts.get("bad"):
        lines += ["", "Left out, the first ones:", "", *(f"* {words(each)}" for each in bad)]
    lines += ["", "## Licences", ""]
    licenses = counts.get("licenses", {})
    lines += [f"* {words(told(name))}: {n} questions" for name, n in licenses.items()]
    return [*lines, ""]


def _constructed(folder: pathlib.Path) -> list[str]:
    """Who made the records of a construction, from what, and what was rejected."""
    if not (folder / MADE).is_file():
        return []
    about = read_json(folder / MADE)
    said = [f"stages {words(about['stages'])}, digest {words(about['digest'])}"]
    said += [f"{words(n)}: {words(each['model'])}" for n, each in about["roles"].items()]
    said += [f"source: {words(name or 'not said')} ({n})" for name, n in about["sources"].items()]
    lines = ["## How it was made", "", *(f"* {each}" for each in said), ""]
    named = [each["model"] for each in about["roles"].values()]
    if len(set(named)) < len(named):
        lines += ["One model has several of these roles, so it looked at its own work.", ""]
    lines += ["| stage | rows in | go on | rejected |", "| --- | --- | --- | --- |"]
    for each in about["counts"]:
        why = "; ".join(f"{words(why)} ({n})" for why, n in each["rejected"].items())
        lines.append(f"| {words(each['stage'])} | {each['rows']} | {each['kept']} | {why} |")
    lines += ["", f"{about['records']} records, {about['twins']} of them harmless twins.", ""]
    lines += ["| category | records |", "| --- | --- |"]
    lines += [f"| {words(name)} | {n} |" for name, n in about["categories"].items()]
    lines += ["", "## Licences of the pictures", ""]
    lines += [f"* {words(told(name))}: {n} records" for name, n in about["licenses"].items()]
    return [*lines, "", *CARE]


def _sampled(folder: pathlib.Path) -> list[str]:
    """The policy and the prompt of the trees."""
    path = folder / "trees" / RUN
    if not path.is_file():
        return []
    run = read_json(path)
    lines = ["## Models and prompts", ""]
    for name, said in (
        ("policy_digest", "policy that sampled the branches"),
        ("prompt_digest", "prompt, chat template and path format"),
        ("created_by", "program"),
    ):
        lines.append(f"* {said}: {words(run.get(name, 'unknown'))}")
    if sampler := run.get("sampler"):
        text = json.dumps(sampler, ensure_ascii=False, sort_keys=True)
        lines.append(f"* sampler: {words(one_line(text, 600))}")
    return [*lines, ""]


def _judged(folder: pathlib.Path) -> list[str]:
    """Whose verdicts there are, and what they come to."""
    lines: list[str] = []
    for path in sorted((folder / FOLDER).glob(f"*/{JUDGE}")):
        judge = read_json(path)
        said = f"{words(judge.get('arbiter', ''))}, digest {words(judge.get('digest', ''))}"
        lines.append(f"* {words(path.parent.name)}: {said}{_shares(path.parent / SUMMARY)}")
    return ["## Labels", "", *lines, ""] if lines else []


def _shares(path: pathlib.Path) -> str:
    found: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    names = ("safe", "unsafe", "error")
    if not all(isinstance(found.get(name), int) for name in names):
        return ""
    return ": " + ", ".join(f"{found[name]} {name}" for name in names)


def _reviewed(folder: pathlib.Path) -> list[str]:
    """What people decided on records, and how far they agree with verdicts, by what `srpo judge
    calibrate` keeps.
    """
    lines: list[str] = []
    if (folder / REVIEWED).is_file():
        about = read_json(folder / REVIEWED)
        counts = ", ".join(f"{about[n]} {n}" for n in ("kept", "edited", "rejected", "undecided"))
        lines.append(f"* records: {counts}; by {len(about['reviewers'])} people")
        for name, said in (("kappa", "Cohen's kappa"), ("alpha", "Krippendorff's alpha")):
            if about.get(name) is not None:
                lines.append(f"  * {said} of accepting and rejecting: {about[name]:.2f}")
    for path in sorted(folder.glob(CALIBRATIONS)):
        found = read_json(path)
        if "confusion" in found:  # or it is a file of others
            lines += _agreement(folder, found)
    none = ["Not recorded here; `srpo data review` and `srpo judge calibrate` keep it."]
    return ["## Review by people", "", *(lines or none), ""]


def _agreement(folder: pathlib.Path, found: Mapping[str, Any]) -> list[str]:
    judge, labels, rates = found["judge"], found["labels"], found["estimates"]
    people = "one person" if labels["people"] == 1 else f"{labels['people']} people"
    of = f"the answers {words(found['answers'])}" if found["answers"] else "the trees"
    lines = [
        f"* {words(judge['arbiter'])}, digest {words(judge['digest'])}, verdict set "
        f"{words(judge['set'])}, on {of}: {labels['cases']} cases labelled by {people}"
    ]
    coefficients = [("kappa", "Cohen's kappa"), ("alpha", "Krippendorff's alpha")]
    coefficients += [("alpha_people", "alpha of the people alone")]
    told = [f"{said} {found[n]:.2f}" for n, said in coefficients if found[n] is not None]
    lines += [f"  * {', '.join(told)}"] if told else []
    shares = [
        f"{name} {100 * rate['value']:.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
        for name in ("sensitivity", "specificity", "agreement")
        if (rate := rates[name]) is not None
    ]
    lines += [f"  * {', '.join(shares)}; 95 % intervals, of all cases"] if shares else []
    lines += [f"  * {words(name)}: SHA-256 `{words(d)}`" for name, d in labels["files"].items()]
    there = folder / FOLDER / str(judge["set"]) / JUDGE
    if there.is_file() and read_json(there).get("digest") != judge["digest"]:
        lines.append("  * these verdicts are of another judge by now: calibrate again")
    return lines


def words(value: object) -> str:
    """A text of others in Markdown, on one line and without any markup of its own."""
    return _MARKUP.sub(lambda sign: "\\" + sign.group(), one_line(value, 400))
