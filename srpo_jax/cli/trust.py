"""`srpo judge sample`, `calibrate` and `compare`: a workdir's verdicts found, and what is said of
them. No config is needed: what there is lies in the workdir.
"""

from __future__ import annotations

import pathlib
import shlex
from collections import Counter

from srpo_jax.errors import UserError
from srpo_jax.files import check_writable
from srpo_jax.judge.trust.calibrate import calibrate as run_calibrate
from srpo_jax.judge.trust.compare import compare as run_compare
from srpo_jax.judge.trust.kept import keep, kept_beside
from srpo_jax.judge.trust.labels import read_labels, read_sampled_by, to_label, write_to_label
from srpo_jax.judge.trust.material import Material, of_answers, of_trees
from srpo_jax.judge.trust.tables import format_calibration, format_comparison
from srpo_jax.keepers import address_of
from srpo_jax.runs.calibration_page import write_page
from srpo_jax.runs.workdir import read_config, run_name, trees_folder

TO_LABEL = "to_label.jsonl"
PAGE = "calibration.html"


def sample(workdir: str, *, verdicts: str, answers: str, count: int, out: str) -> None:
    """Writes rows for a person to label. Errors: UserError, also where there are labels already."""
    if count < 1:
        raise UserError(f"--count={count}: at least 1 is needed")
    material = _material(workdir, answers)
    chosen = material.find(verdicts)
    trees = material.trees(chosen)
    rows = to_label(trees, count, keep_irregular=True, sampled_by=chosen.name)
    path = _place(out or pathlib.Path(workdir, TO_LABEL))
    if not rows:
        raise UserError(f"{chosen.name} has no verdict on {material.what}: nothing to label")
    if not write_to_label(path, rows):
        raise UserError(
            f"{path} has labels or something else, and is not overwritten: give another --out"
        )
    first, labels = "", str(path)
    if address := address_of(path):  # only a file of this machine can be filled in
        first, labels = f"bring it here (gcloud storage cp {shlex.quote(address)} .), ", path.name
    told = f"wrote {len(rows)} cases of {material.what} to {path}"
    print(f'{told}; {first}fill in "reply_verdict", then')
    given = {"workdir": workdir, "answers": answers, "verdicts": verdicts, "labels": labels}
    options = [f"--{option}={value}" for option, value in given.items() if value]
    print(f"    {shlex.join(['srpo', 'judge', 'calibrate', *options])}")


def calibrate(workdir: str, *, labels: str, verdicts: str, answers: str, out: str) -> None:
    """Prints the numbers, and writes the page and the same as JSON. Errors: UserError."""
    files = [name.strip() for name in labels.split(",") if name.strip()]
    if not files:
        raise UserError("--labels=FILE is missing; `srpo judge sample` writes one to fill in")
    if len({pathlib.Path(name).resolve() for name in files}) < len(files):
        raise UserError(f"--labels={labels}: a file is given twice")
    given = {rater: read_labels(file) for rater, file in zip(_raters(files), files)}
    sampled_by = read_sampled_by(files)
    path = _place(out or pathlib.Path(workdir, PAGE))
    beside = kept_beside(path)
    material = _material(workdir, answers)
    chosen = material.find(verdicts)
    found = run_calibrate(material, chosen, given, sampled_by)
    print(format_calibration(found))
    home = pathlib.Path(workdir)
    name = run_name(read_config(home)) or home.resolve().name
    page = write_page(path, found, material.trees(chosen), name)
    print(f"\nwrote {page} and {keep(beside, found, files, answers).name}")


def compare(workdir: str, *, one: str, other: str, answers: str) -> None:
    """Prints how far two sets agree. Errors: UserError."""
    if not one or not other:
        raise UserError("two names of verdict sets are needed: srpo judge compare NAME OTHER")
    if one == other:
        raise UserError(f"{one!r} is given twice: compare it with another set")
    material = _material(workdir, answers)
    print(format_comparison(run_compare(material, material.find(one), material.find(other))))


def _material(workdir: str, answers: str) -> Material:
    home = pathlib.Path(workdir)
    if answers:
        return of_answers(home, answers)
    return of_trees(trees_folder(home, read_config(home)) or home / "trees")


def _place(out: str | pathlib.Path) -> pathlib.Path:
    """Where to write, in a folder that there is from now on. Errors: UserError."""
    path = pathlib.Path(out)
    if path.exists() and not path.is_file():
        raise UserError(f"--out={out} is there and is no file: give another name")
    check_writable(path.parent)
    return path


def _raters(files: list[str]) -> list[str]:
    """A name for each file: its own without ending, and its whole path where that is not enough."""
    stems = Counter(pathlib.Path(file).stem for file in files)
    return [
        file if stems[pathlib.Path(file).stem] > 1 else pathlib.Path(file).stem for file in files
    ]
