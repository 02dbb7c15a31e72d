"""What a run has left in its workdir: written whole or not at all, read for report and card.

    config.json  metrics.jsonl  trees/  eval/NAME/{scores.json,generations.jsonl}
    runs/METHOD-SEED/  the same, where several methods were trained on the trees of one workdir
    rounds.json  round-1/  round-2/  the same, of a run of rounds: each round is a workdir

Readers take what is there: a missing file is empty, a damaged one a UserError that names it.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from srpo_jax.buckets.fetch import mirror
from srpo_jax.buckets.objects import is_url
from srpo_jax.config.fields import Config
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_json

ROUNDS = "rounds.json"  # in the workdir of a run of rounds: how far it is
BEFORE, AFTER = ("before", "base"), ("after", "srpo")  # names of evaluations


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """Around what is made of the file `path` (or of those that the pattern means).

    Errors: UserError that names it, where it holds values that no run writes: text for a number,
    a list for a name.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        said = one_line(f"{type(error).__name__}: {error}", 120)
        raise UserError(
            f"{path} holds something that no run writes ({said}); restore it, or move it away to "
            "leave out what it says"
        ) from error


def method(config: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> str:
    """The objective of a run in a few words. facts: what the run was trained on (read_facts):
    what compared no pair is not called by the name of a comparison.
    """
    objective = config.get("objective") or {}
    if not objective:
        return "unknown objective"
    if objective.get("lambda_exp") == 0:
        return "SFT on the reference path"
    if (facts or {}).get("pairs") == 0:
        return "SFT on the reference path, as there was no pair to compare"
    contrast = loss_title(str(objective.get("contrast")))
    weight = f"lambda {objective.get('lambda_exp')}"
    if objective.get("branch_points") == "all":
        return f"SRPO, {contrast} at every step, {weight}"
    return f"{contrast} on whole replies, {weight}"


def run_name(config: Mapping[str, Any]) -> str:
    """The name that the user gave the run; "" for the one that every config begins with."""
    name = str(config.get("name") or "")
    return "" if name == Config().name else name


def loss_title(name: str) -> str:
    """A contrast as papers write it, from its name in the config: "odds_ratio" is "odds ratio", and
    a preference optimisation, whose name ends in "po", is "DPO" or "SimPO". A user's own
    (`module:Class`) stays as it is.
    """
    if ":" in name:
        return name
    return f"{name[:-2].capitalize()}PO" if name.endswith("po") else name.replace("_", " ")


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The resolved config of the run, {} when it has none yet."""
    path = workdir / "config.json"
    stored = read_json(path) if path.is_file() else {}
    config = stored.get("config", stored)
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no config")
    return config


def read_facts(workdir: pathlib.Path) -> dict[str, Any]:
    """What the run was trained on, {} when that is not recorded: {"questions",
    "questions_with_pair", "pairs", "labels", "verdicts"}, see train.setup.Setup.facts.
    """
    path = workdir / "config.json"
    return (read_json(path).get("data") or {}) if path.is_file() else {}


def read_evaluations(workdir: pathlib.Path) -> dict[str, dict]:
    """{name: scores} of eval/*/scores.json, "before" first and "after" last."""
    found = {
        path.parent.name: read_json(path) for path in sorted(workdir.glob("eval/*/scores.json"))
    }
    order = {**dict.fromkeys(BEFORE, 0), **dict.fromkeys(AFTER, 2)}
    return {name: found[name] for name in sorted(found, key=lambda n: (order.get(n, 1), n))}


def asked(scores: Mapping[str, Any]) -> tuple[str, str, int]:
    """How the policy of these scores was asked, besides the questions: digest of the prompt, what
    its answers were made to begin with, and among how many answers one was chosen (0: not). A
    policy that is asked in another way is another method.
    """
    decoding = scores.get("decoding") or {}
    prefix, best_of = decoding.get("forced_prefix", ""), decoding.get("best_of", 0)
    return str(scores.get("prompt_digest") or ""), str(prefix), int(best_of)


def sampled(scores: Mapping[str, Any]) -> tuple[float, int]:
    """(temperature, answers to each question) of these scores. A benchmark may have its own, so
    they tell two ways to ask apart on the same questions alone.
    """
    decoding = scores.get("decoding") or {}
    return float(decoding.get("temperature", 0.0)), int(decoding.get("samples", 1))


def unscored(workdir: pathlib.Path) -> list[str]:
    """The names of evaluations whose answers lie there and were not judged."""
    answered = sorted(path.parent for path in workdir.glob("eval/*/answers.json"))
    return [folder.name for folder in answered if not (folder / "scores.json").is_file()]


def shown_run(workdir: pathlib.Path) -> pathlib.Path:
    """The run whose curves and answers are shown: the workdir's own, else one of runs/, srpo's
    first.
    """
    if (workdir / "config.json").is_file():
        return workdir
    runs = [path.parent for path in sorted(workdir.glob("runs/*/config.json"))]
    return min(runs, key=lambda run: not run.name.startswith("srpo"), default=workdir)


def round_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """The workdir of a round, from 1."""
    return workdir / f"round-{number}"


def round_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The workdirs of the rounds that have begun, in order; [] for what is no run of rounds."""
    found = []
    while (workdir / ROUNDS).is_file() and (each := round_folder(workdir, len(found) + 1)).is_dir():
        found.append(each)
    return found


def next_round(workdir: pathlib.Path) -> pathlib.Path | None:
    """The workdir of the round after the one in `workdir`, whose policy explored it; None where
    there is none.
    """
    rounds = round_folders(workdir.resolve().parent)
    places = [each.name for each in rounds]
    after = places.index(workdir.resolve().name) + 1 if workdir.resolve().name in places else 0
    return rounds[after] if 0 < after < len(rounds) else None


def read_runs(workdir: pathlib.Path) -> dict[str, list[dict]]:
    """{method: scores after training, one per seed} of runs/METHOD-SEED."""
    found: dict[str, list[dict]] = {}
    for path in sorted(workdir.glob("runs/*/eval/after/scores.json")):
        method_name = path.parents[2].name.rpartition("-")[0] or path.parents[2].name
        found.setdefault(method_name, []).append(read_json(path))
    return found


def trees_folder(workdir: pathlib.Path, config: Mapping[str, Any]) -> pathlib.Path | None:
    """Where the trees of a run lie: its own folder, else the one its config names."""
    named = (config.get("data") or {}).get("trees")
    places = [workdir / "trees"] + ([local_place(named)] if named else [])
    return next((place for place in places if any(place.glob("*.array_record"))), None)


def record_folders(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[pathlib.Path]:
    """Folders that image names of this run's records may be relative to."""
    data = config.get("data") or {}
    folders = []
    for spec in (data.get("test_records"), data.get("train_records")):
        if spec:
            world, colon, _ = spec.partition(":")
            drawn = workdir / "data" / world
            folders.append(drawn if colon and drawn.is_dir() else local_place(spec).parent)
    return [*folders, workdir]


def local_place(spec: str) -> pathlib.Path:
    """A file or folder; of what lies in a bucket where this host's cache has it, if it has."""
    return mirror(spec) if is_url(spec) else pathlib.Path(spec)
