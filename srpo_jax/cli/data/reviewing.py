"""`srpo data review`: a page on which people look through, and what their decisions come to."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.console import say
from srpo_jax.data_pipelines.construct.making import ABOUT, RECORDS, counted
from srpo_jax.data_pipelines.construct.review import label_studio
from srpo_jax.data_pipelines.construct.review.applying import (
    apply,
    decision_table,
    label_rows,
    write_rows,
)
from srpo_jax.data_pipelines.construct.review.decisions import Reviewer, read_decisions
from srpo_jax.data_pipelines.construct.review.items import (
    LABELS,
    STEMS,
    Review,
    review_of_labels,
    review_of_records,
)
from srpo_jax.data_pipelines.construct.review.items import RECORDS as OF_RECORDS
from srpo_jax.data_pipelines.exchange.card import MADE, REVIEWED, check_card, write_card
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.errors import UserError
from srpo_jax.files import check_writable, read_json, write_json
from srpo_jax.judge.trust.labels import to_label
from srpo_jax.judge.trust.material import Material, of_answers, of_trees
from srpo_jax.judge.trust.statistics import alpha, kappa
from srpo_jax.runs.review_page import write_page
from srpo_jax.runs.workdir import read_config, trees_folder

LABELLED = 100  # cases of a page of labels, if --sample does not say


def data_review(options: Mapping[str, Any]) -> None:
    """Runs the verb with its options. Errors: UserError."""
    if not options["in"]:
        raise UserError("IN is missing, as in: srpo data review runs/ssui")
    place = pathlib.Path(options["in"])
    if not place.is_dir():
        raise UserError(f"IN={place}: no such folder")
    if options["sample"] < 0:
        raise UserError(f"--sample={options['sample']}: must not be negative")
    if options["to"] not in ("", "label_studio"):
        raise UserError(f"--to={options['to']}: there is label_studio, and without it the page")
    judged = options["judged"] or bool(options["answers"] or options["verdicts"])
    if judged and options["to"]:
        raise UserError("--to=label_studio is of records: judged answers have no picture files")
    if options["apply"]:
        given = [option for option in ("sample", "to", "answers", "verdicts") if options[option]]
        if given:
            raise UserError(f"--{given[0]} goes with making the page, and not with --apply")
        return (_apply_labels if judged else _apply_records)(place, options)
    if options["out"]:
        raise UserError("--out goes with --apply")
    check_writable(place)
    if judged:
        review, pictures = _labels(place, options)
    else:
        records = _records(place)
        review = review_of_records(records, options["sample"])
        shown = {name for item in review.items for name in item["images"]}
        pictures = _picture_files(records, shown)
    review.write(place)
    if options["to"]:
        tasks, config = label_studio.write(review, place)
        say(f"wrote {len(review.items)} tasks to {tasks}, and the labelling config to {config}")
    else:
        page = place / f"{STEMS[review.kind]}.html"
        write_page(page, review, pictures, place.resolve().name)
        say(f"wrote {page}: {len(review.items)} items; open it in a browser, and save decisions")
    more = " --judged" * judged
    command = shlex.join(["srpo", "data", "review", str(place)])
    say(f"then: {command}{more} --apply=decisions-NAME.json")


def _records(place: pathlib.Path) -> list[Record]:
    if not (place / RECORDS).is_file():
        raise UserError(
            f"{place} has no {RECORDS}; the verdicts of a workdir are reviewed with --judged"
        )
    return read_records(place / RECORDS)


def _picture_files(records: Sequence[Record], shown: set[str]) -> dict[str, pathlib.Path]:
    found: dict[str, pathlib.Path] = {}
    for record in records:
        for name, path in zip(record.images, record.image_paths(), strict=True):
            if name in shown:
                found[name] = path
    return found


def _labels(
    place: pathlib.Path, options: Mapping[str, Any]
) -> tuple[Review, dict[str, bytes | pathlib.Path]]:
    """Cases of a judge, as `srpo judge sample` draws them, and their pictures."""
    material = _material(place, options["answers"])
    chosen = material.find(options["verdicts"])
    count = options["sample"] or LABELLED
    trees = material.trees(chosen)
    rows = to_label(trees, count, keep_irregular=True, sampled_by=chosen.name)
    if not rows:
        raise UserError(f"{chosen.name} has no verdict on {material.what}: nothing to label")
    pictures: dict[str, bytes | pathlib.Path] = {}
    of: dict[str, list[str]] = {}
    wanted = {row["id"] for row in rows}
    for tree in material.source:
        if tree["id"] in wanted:
            # Two questions may have different pictures of one name.
            of[tree["id"]] = [image["sha256"] for image in tree["images"]]
            pictures |= {image["sha256"]: image["data"] for image in tree["images"]}
    rows = [{**row, "images": of[row["id"]]} for row in rows]
    return review_of_labels(rows), pictures


def _material(place: pathlib.Path, answers: str) -> Material:
    if answers:
        return of_answers(place, answers)
    return of_trees(trees_folder(place, read_config(place)) or place / "trees")


def _reviewers(given: str, review: Review) -> list[Reviewer]:
    """Of all files. Errors: UserError, also for one name in two files."""
    files = [pathlib.Path(name.strip()) for name in given.split(",") if name.strip()]
    found: list[Reviewer] = []
    for path in files:
        if label_studio.is_export(path):
            found += label_studio.read(path, review)
        else:
            found.append(read_decisions(path, review))
    names = [reviewer.name for reviewer in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--apply={given}: two files are of {twice}; each reviewer has one")
    return found


def agreement(reviewers: Sequence[Reviewer]) -> dict[str, float | None]:
    """kappa of two, alpha of more, of what they decided on the same items; {} of one."""
    if len(reviewers) == 2:
        return {"kappa": kappa(decision_table(*reviewers))}
    if len(reviewers) > 2:
        keys = {key for each in reviewers for key in each.decisions}
        units = [[_word(each, key) for each in reviewers] for key in sorted(keys)]
        return {"alpha": alpha(units)}
    return {}


def _word(reviewer: Reviewer, key: str) -> str | None:
    decision = reviewer.decisions.get(key)
    if decision is None:
        return None
    return "accept" if decision.decision == "edit" else decision.decision


def _tell_agreement(found: Mapping[str, float | None]) -> None:
    for name, value in found.items():
        said = "not defined: all say the same" if value is None else f"{value:.2f}"
        say(f"{name} of the reviewers: {said}")


def _apply_records(place: pathlib.Path, options: Mapping[str, Any]) -> None:
    """Writes the records that stay, and what was decided."""
    records, review = _records(place), Review.read(place, OF_RECORDS)
    reviewers = _reviewers(options["apply"], review)
    kept, summary = apply(records, review, reviewers)
    summary |= agreement(reviewers)
    if not kept:
        raise UserError("no record was accepted, so there is nothing to write")
    out = pathlib.Path(options["out"] or place / "reviewed")
    if out.resolve() == place.resolve():
        raise UserError(f"--out={out}: the records that were reviewed lie there")
    if (out / RECORDS).exists() and not (out / REVIEWED).exists():
        raise UserError(f"{out} holds records of another origin: name another --out")
    check_card(out)
    check_writable(out)
    store = PictureStore(out, pathlib.Path(records[0].root))
    moved = [
        dataclasses.replace(record, images=tuple(map(store.keep, record.images)), root=str(out))
        for record in kept
    ]
    write_json(out / REVIEWED, summary)
    write_records(moved, out / RECORDS)
    if (place / MADE).is_file():
        write_json(out / ABOUT, read_json(place / MADE) | counted(moved))
        write_card(out)
    counts = ", ".join(f"{summary[name]} {name}" for name in ("edited", "rejected", "undecided"))
    say(f"wrote {len(kept)} of {len(records)} records to {out / RECORDS}: {counts}")
    if review.sampled:
        share = 100 * summary["accepted_share"]
        say(f"of all records, by the weights of the sample, {share:.1f} % would be accepted")
    _tell_agreement({name: summary[name] for name in ("kappa", "alpha") if name in summary})


def _apply_labels(place: pathlib.Path, options: Mapping[str, Any]) -> None:
    """Writes a file of labels for each reviewer."""
    review = Review.read(place, LABELS)
    reviewers = _reviewers(options["apply"], review)
    out = pathlib.Path(options["out"] or place)
    check_writable(out)
    plain = [
        "".join(c if c.isalnum() or c in "-_." else "-" for c in reviewer.name)
        for reviewer in reviewers
    ]
    files = [out / f"labels-{name}.jsonl" for name in plain]
    if len(set(files)) < len(files):
        raise UserError(f"the reviewers {', '.join(plain)} come to the same file: rename one")
    for reviewer, path in zip(reviewers, files, strict=True):
        write_rows(path, label_rows(review, reviewer))
        say(f"wrote {path}: {len(reviewer.decisions)} of {len(review.items)} decided")
    _tell_agreement(agreement(reviewers))
    labels = ",".join(map(str, files))
    command = ["srpo", "judge", "calibrate", f"--workdir={place}", f"--labels={labels}"]
    say(f"next: {shlex.join(command)}")
