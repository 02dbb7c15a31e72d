"""The scores of several workdirs, put in order: which method, which benchmark, which seeds.

A row is a method: a policy before training ("base": evaluations that are called so, and of what a
run began with), that policy asked in another way (a safety prompt, a forced prefix, demonstrations,
several answers, the best of them), or runs with the same config but for the seed.
A column is a benchmark with its questions and its judge: scores on other questions, or of another
judge, are not comparable and get a column of their own.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from srpo_jax.config.fields import FIELDS
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, read_lines
from srpo_jax.judge.results.rates import by_question
from srpo_jax.judge.roles import own_chooser, own_teacher
from srpo_jax.runs.judge_facts import without_folders
from srpo_jax.runs.workdir import (
    BEFORE,
    asked,
    method,
    read_config,
    read_evaluations,
    read_facts,
    readable,
    round_folders,
    run_name,
    sampled,
    trees_folder,
    unscored,
)

UNKNOWN = "not recorded"  # instead of the name of a model


class Evaluation(NamedTuple):
    """One scores.json. workdir: of its run, whose config.json and facts these are ({}: none).
    about: what answers.json says ({}: nothing).
    began_with: digest of the policy that the run began with, "" where that is not known.
    sampled_by: of the one that sampled its trees, if it is another.
    """

    workdir: pathlib.Path
    name: str
    scores: Mapping[str, Any]
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    began_with: str = ""
    about: Mapping[str, Any] = MappingProxyType({})
    sampled_by: str = ""

    @property
    def folder(self) -> pathlib.Path:
        """Where scores.json and generations.jsonl lie."""
        return self.workdir / "eval" / self.name

    def rows(self) -> list[dict[str, Any]]:
        """The judged answers, [] where they are not there."""
        return read_lines(self.folder / "generations.jsonl")

    def hits(self) -> dict[str, dict[str, list[bool]]]:
        """{metric: {question: whether it holds of each answer that counts}} of what its benchmark
        says is tested; {} where it says nothing.
        """
        stored = self.scores.get("tested") or {}
        names = list(by_question(self.rows())) if stored else []
        return {
            metric: {
                name: [True] * k + [False] * (n - k)
                for name, (k, n) in zip(names, counts, strict=True)
                if n
            }
            for metric, counts in stored.items()
        }


class Column(NamedTuple):
    """benchmark: its name. records: digest of the questions, "" where it is not known. judge:
    digest.
    """

    benchmark: str
    questions: int
    records: str
    judge: str


@dataclass(eq=False)
class Method:
    """A row. base: digest of the policy before training that this is, asked in another way; "" for
    that policy itself and for what was trained. cells: the evaluations in each column, one of each
    seed.
    """

    name: str
    is_base: bool
    base: str = ""
    cells: dict[Column, list[Evaluation]] = field(default_factory=dict)

    @property
    def evaluations(self) -> list[Evaluation]:
        return [each for own in self.cells.values() for each in own]

    def own_teacher(self, column: Column) -> bool:
        """Whether the judge of the column also judged what this was trained on, or chose the
        answers among several.
        """
        own = self.cells.get(column, [])
        if any(own_chooser(each.scores) for each in own):
            return True
        found = (own_teacher(each.scores, each.facts.get("verdicts")) for each in own)
        return self.trained and any(found)

    @property
    def trained(self) -> bool:
        """Whether it is no policy before training."""
        return not self.is_base and not self.base


@dataclass
class Collected:
    """All rows and columns. left_out: evaluations whose answers were not judged."""

    methods: list[Method]
    columns: list[Column]
    left_out: list[str]

    @property
    def evaluations(self) -> list[Evaluation]:
        return [each for row in self.methods for each in row.evaluations]

    def base_of(self, row: Method) -> Method | None:
        """What a row is compared with: the policy that its runs began with, or else the only one
        there is. None without one, and for one itself.
        """
        bases = [other for other in self.methods if other.is_base]
        begun = {row.base} if row.base else {each.began_with for each in row.evaluations} - {""}
        own = [base for base in bases if {_policy(e) for e in base.evaluations} == begun]
        found = own or bases
        return found[0] if len(found) == 1 and not row.is_base else None

    def last_day(self) -> str:
        """The date on which the newest of the scores was written."""
        times = [(each.folder / "scores.json").stat().st_mtime for each in self.evaluations]
        return datetime.datetime.fromtimestamp(max(times), datetime.UTC).date().isoformat()


def collect(workdirs: Sequence[str | pathlib.Path]) -> Collected:
    """Every eval/NAME/scores.json of these workdirs, of the rounds in them, and of the
    runs/METHOD-SEED in either.

    Errors: UserError for a folder that does not exist or has no scores.
    """
    found: list[Evaluation] = []
    left_out = []
    for workdir in dict.fromkeys(map(pathlib.Path, workdirs)):
        if not workdir.is_dir():
            raise UserError(f"workdir {workdir} does not exist")
        homes = [
            home
            for place in (workdir, *round_folders(workdir))
            for home in (place, *(path.parent for path in sorted(place.glob("runs/*/eval"))))
        ]
        own = [each for home in homes for each in _evaluations(home)]
        left = [str(home / "eval" / name) for home in homes for name in unscored(home)]
        if not own:
            hint = (
                f"judge {left[0]} first" if left else "run `srpo eval` and `srpo judge --answers`"
            )
            raise UserError(f"{workdir} has no eval/NAME/scores.json: {hint}")
        found += own
        left_out += left
    return _in_order(found, left_out)


def _evaluations(home: pathlib.Path) -> Iterable[Evaluation]:
    config, facts = read_config(home), read_facts(home)
    run = read_json(home / "config.json").get("run") if config else None
    began_with = str((run or {}).get("model weights", ""))
    trees = trees_folder(home, config)
    made = read_json(trees / "run.json") if trees and (trees / "run.json").is_file() else {}
    sampled_by = str(made.get("policy_digest", began_with))
    other = sampled_by if sampled_by != began_with else ""
    for name, scores in read_evaluations(home).items():
        path = home / "eval" / name / "answers.json"
        about = read_json(path) if path.is_file() else {}
        yield Evaluation(home, name, scores, config, facts, began_with, about, other)


def _in_order(found: Sequence[Evaluation], left_out: list[str]) -> Collected:
    named = {_policy(each) for each in found if _name(each) in BEFORE}
    begun = {each.began_with for each in found}
    plain = _plain_ways(found)
    columns: dict[Column, None] = {}
    methods: dict[str, Method] = {}
    placed = []
    for each in found:
        column = _column(each)
        columns[column] = None
        # What another run began with may be what this one ended with.
        known = named | (begun if not each.config else {each.began_with})
        untrained = _name(each) in BEFORE or _policy(each) in known - {""}
        way = (asked(each.scores), sampled(each.scores))
        is_base = untrained and way in plain.get((_policy(each), column), ())
        placed.append((each, column, is_base, _policy(each) if untrained and not is_base else ""))
    trained = [
        (each.workdir, column) for each, column, is_base, base in placed if not (is_base or base)
    ]
    several = {workdir for (workdir, _), count in Counter(trained).items() if count > 1}
    for each, column, is_base, base in placed:
        key = f"base {_policy(each)}" if is_base or base else _group(each)
        if base:
            key += f" {asked(each.scores)} {_name(each)}"
        elif not is_base and each.workdir in several:
            key += f" {_name(each)}"  # several policies of one run
        there = methods[key].cells.get(column, []) if key in methods else []
        if there and sampled(each.scores) != sampled(there[0].scores):
            key += f" {sampled(each.scores)}"  # other answers to the same questions
            there = methods[key].cells.get(column, []) if key in methods else []
        same = is_base or base or (_policy(each) and _policy(each) in map(_policy, there))
        if there and same:
            continue  # the same policy, questions and judge, from another workdir
        if _seed(each) in map(_seed, there):
            key += f" {each.workdir}"  # another policy, by the same words
        row = methods.setdefault(key, Method(_title(each, is_base, base), is_base, base))
        row.cells.setdefault(column, []).append(each)
    rows = sorted(methods.values(), key=lambda row: (not row.is_base, row.trained))
    _tell_apart(rows)
    return Collected(rows, sorted(columns), left_out)


def _plain_ways(found: Sequence[Evaluation]) -> dict[tuple[str, Column], set[tuple]]:
    """{(policy, column): the ways in which it is asked as a base policy}, a way being (how it is
    asked, how its answers are sampled). What evaluations that are called so say of the first holds
    for all columns, else what the first one without forced prefix and choice says; of the second
    there is one in each column: that of an evaluation that is called so, else of one under the
    benchmark's own name, else of the first one.
    """
    named: dict[str, set[tuple]] = {}
    first: dict[str, set[tuple]] = {}
    for each in found:
        with readable(each.folder / "scores.json"):
            way, *_ = asked(each.scores), sampled(each.scores), _column(each)
        if _name(each) in BEFORE:
            named.setdefault(_policy(each), set()).add(way)
        elif not way[1] and not way[2]:
            first.setdefault(_policy(each), {way})
    ways: dict[tuple[str, Column], set[tuple]] = {}
    for each in sorted(found, key=lambda e: (_name(e) not in BEFORE, _name(e) != "")):
        plain = {**first, **named}.get(_policy(each), set())
        if asked(each.scores) in plain:
            own = {(way, sampled(each.scores)) for way in plain}
            ways.setdefault((_policy(each), _column(each)), own)
    return ways


def _name(each: Evaluation) -> str:
    """The name that the user gave the evaluation: of one of several benchmarks without that of the
    benchmark, "" where there is no other.
    """
    spec = str(each.about.get("benchmark") or "")
    for benchmark in (str(each.scores.get("benchmark") or ""), spec.rpartition(":")[2]):
        if benchmark and each.name == benchmark:
            return ""
        if benchmark and each.name.endswith(f"-{benchmark}"):
            return each.name.removesuffix(f"-{benchmark}")
    return each.name


def _column(each: Evaluation) -> Column:
    scores = each.scores
    split = (scores.get("decoding") or {}).get("split", "test")
    benchmark = str(scores.get("benchmark") or f"{split} questions")
    records = str(each.about.get("records", ""))
    judge = str((scores.get("judge") or {}).get("digest", "not recorded"))
    return Column(benchmark, int(scores.get("n", 0)), records, judge)


def _seed(each: Evaluation) -> Any:
    return each.config.get("seed") if each.config else str(each.folder)


def _policy(each: Evaluation) -> str:
    return str(each.scores.get("policy_digest") or "")


def _group(each: Evaluation) -> str:
    """What is the same for all seeds of a method: the settings that decide what is trained, but for
    the seed, the model that the run began with, its questions, whose branches and whose verdicts it
    learnt from.
    """
    if not each.config:
        return f"policy {_policy(each) or each.folder}"
    kept = {}
    for name, value in _flat(each.config):
        known = FIELDS.get(name)
        if name not in ("name", "seed") and (not known or known.decides or known.samples):
            kept[name] = value
    records = (each.config.get("data") or {}).get("train_records")
    verdicts = (each.facts.get("verdicts") or {}).get("digest")
    names = [without_folders(str(records)), each.began_with or base_model(each), verdicts]
    names += [each.sampled_by] * bool(each.sampled_by)
    return json.dumps([kept, names], sort_keys=True, default=str)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def base_model(each: Evaluation) -> str:
    """The name of the folder of the model that the run began with, or of the one that answered
    where there is no run; "not recorded" without.
    """
    path = (each.config.get("model") or {}).get("path") or each.about.get("model")
    return str(without_folders(str(path))) if path else UNKNOWN


def _title(each: Evaluation, is_base: bool, base: str) -> str:
    if is_base:
        return "base"
    if base:
        name = _name(each)
        temperature, samples = sampled(each.scores)
        how = f"temperature {temperature:g}, {samples} answers"
        return f"base, {how if not name or name in BEFORE else name}"
    if not each.config:
        return f"{each.workdir.resolve().name}/{each.name}"
    return run_name(each.config) or method(each.config, each.facts)


def _tell_apart(rows: Sequence[Method]) -> None:
    """Rows of the same name get the place of their first evaluation behind it."""
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1:
            first = row.evaluations[0]
            row.name += f" ({first.workdir.resolve().name}/{first.name})"
