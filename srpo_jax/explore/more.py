"""`srpo explore --more`: more branches for the questions that have no pair yet.

RPO samples a branch point until it has a right and a wrong answer, at most 10 times (2410.10858,
section 2). Here judging lies between: each further part adds up to explore.branches to every branch
point of a question without a pair, at most explore.max_branches in all. Every point counts, as a
pair may turn up at any of them and the loss is a mean over those that have one.

Which questions these are is read from a verdict set once, by the rules of training, and written
down as the part's plan (tree_parts.py) before anything is sampled: all workers, and a later start,
do what it says, whatever has been judged since. Branch k of a point is the one that an exploration
with more branches would have sampled.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.sidecars.case_keys import shard_keys
from srpo_jax.data_pipelines.sidecars.labels import SAFE, LabelRules, Labels, shard_labels
from srpo_jax.data_pipelines.tree_parts import (
    Chosen,
    Plan,
    count_plans,
    part_stem,
    plan_path,
    read_plan,
    write_plan,
)
from srpo_jax.data_pipelines.tree_store import SUFFIX, TreeSource, shard_done
from srpo_jax.data_pipelines.verdict_store import branch_label, find_folder
from srpo_jax.errors import UserError
from srpo_jax.explore.shard_leases import ShardLeases, pause
from srpo_jax.keepers import look_again
from srpo_jax.pack.outlines import shard_outlines
from srpo_jax.pack.prompts import Prompts
from srpo_jax.pack.tree_layout import choose_pairs

_PAIRS = ("branch_points", "odds_from")  # of config.objective: what decides whether there is a pair


class Asked(NamedTuple):
    """How questions are asked, see outlines.shard_outlines."""

    prompts: Prompts
    digest: str


class More:
    """The trees of which a part is to have more branches: [id] is one as it was before this part.

    plan: of the part. paths: the shards of the first exploration.
    """

    def __init__(self, plan: Plan, paths: Sequence[pathlib.Path]):
        self.plan = plan
        self.branches: int = plan.about["branches"]
        source = TreeSource(paths[0].parent, sorted(_up_to(paths, plan.number)))
        counts = {path: count for path, count in source.shards}
        first = 0
        self._source, self._numbers = source, dict[str, int]()
        for path in sorted(paths):
            chosen = plan.shards.get(_stem(path), Chosen([], []))
            self._numbers.update(zip(chosen.ids, (first + number for number in chosen.trees)))
            first += counts[path]

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._source[self._numbers[name]]

    def wanted(self, branches: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """(branch point, k) of what is to be sampled besides these branches of a tree."""
        return _wanted((branch["at"] for branch in branches), self.plan.about)


def shards_of_plan(
    paths: Sequence[pathlib.Path], plan: Plan
) -> list[tuple[pathlib.Path, list[str]]]:
    """The shards of a part, each with the names of its questions. paths: as of More."""
    return [
        (_of_part(path, plan.number), plan.shards[_stem(path)].ids)
        for path in sorted(paths)
        if _stem(path) in plan.shards
    ]


def check_more(cfg: Config, paths: Sequence[pathlib.Path]) -> None:
    """Errors: UserError when there is nothing to add to, or it is not judged. Quick."""
    folder = paths[0].parent
    if not all(map(shard_done, paths)):
        raise UserError(
            f"{folder}: --more adds to trees that are explored and judged: run `srpo explore` and "
            "`srpo judge` first"
        )
    if not _unfinished(paths):
        find_folder(folder, cfg.arbiter.verdicts)


def begin_part(cfg: Config, paths: Sequence[pathlib.Path], asked: Asked) -> tuple[int, str]:
    """Decides which questions the next part is about, and writes its plan; of several workers one
    does, and the others wait for it. paths: as of More.

    Returns (its number, 0 when there is nothing to add; then what to tell). When a part is not
    finished yet, that is the one. Errors: UserError when the trees are not judged.
    """
    folder = paths[0].parent
    with ShardLeases(folder.with_name(folder.name + ".claims")) as leases:
        while not (number := _unfinished(paths)):
            last = count_plans(folder)
            name = plan_path(folder, last + 1).name
            if leases.take([name]) is None:
                pause()
                look_again(folder)
                continue
            look_again(folder)
            if count_plans(folder) == last:  # since then nobody was faster
                plan, said = _choose(cfg, paths, last + 1, asked)
                if plan is None:
                    return 0, said
                write_plan(folder, plan)
            leases.release(name)
    return number, ""


def _choose(
    cfg: Config, paths: Sequence[pathlib.Path], number: int, asked: Asked
) -> tuple[Plan | None, str]:
    """The plan of the next part; None, and what to tell, when there is nothing to add."""
    folder = paths[0].parent
    every = _up_to(paths, number)
    labels = Labels(find_folder(folder, cfg.arbiter.verdicts), map(_stem, every))
    if labels.missing:
        if number > 1 and not set(labels.missing) & set(map(_stem, paths)):
            return None, (
                f"explore: part {number - 1} is whole and not judged yet: run `srpo judge`, then "
                "this command again for another part"
            )
        raise UserError(
            f"{labels.folder} has no verdicts on {len(labels.missing)} of {len(every)} shards of "
            f"{folder} ({labels.missing[0]}): run `srpo judge` first"
        )
    about = {
        "part": number,
        "branches": cfg.explore.branches,
        "max_branches": cfg.explore.max_branches,
        "verdicts": {
            "set": labels.name,
            "judge": labels.judge["digest"],
            "fingerprint": labels.fingerprint,
        },
        "labels": {
            **arguments(branch_label, cfg.arbiter),
            "keep_irregular": cfg.explore.keep_irregular,
            "filter_references": cfg.arbiter.filter_references,
        },
        "pairs": {name: getattr(cfg.objective, name) for name in _PAIRS},
    }
    plan, lacking, total = Plan(about, {}), 0, 0
    for path in sorted(paths):
        found = _questions(path, number, labels, about, asked)
        total += sum(question.used for question in found.values())
        without = {i: question for i, question in found.items() if question.lacks}
        lacking += len(without)
        if room := {i: question for i, question in without.items() if question.room}:
            plan.shards[_stem(path)] = Chosen(list(room), [each.id for each in room.values()])
    if plan.shards:
        return plan, ""
    if not lacking:
        return None, f"explore: nothing to add: each of {total} questions has a pair"
    return None, (
        f"explore: nothing to add: {lacking} of {total} questions have no pair, but "
        f"explore.max_branches={cfg.explore.max_branches} branches at each branch point"
    )


class _Question(NamedTuple):
    """used: whether training takes it. lacks: and finds no pair. room: whether it may have more
    branches.
    """

    id: str
    used: bool
    lacks: bool
    room: bool


def _questions(
    path: pathlib.Path, number: int, labels: Labels, about: Mapping[str, Any], asked: Asked
) -> dict[int, _Question]:
    """The questions of a shard, by their numbers in it, as the parts below `number` left them."""
    found: dict[int, _Question] = {}
    for part in range(number):
        shard = _of_part(path, part)
        if not shard.is_file():
            continue
        plan = read_plan(path.parent, part) if part else None
        questions = _as_labelled(shard, labels, about, asked)
        trees = range(len(questions)) if plan is None else plan.shards[_stem(path)].trees
        found.update(zip(trees, questions, strict=True))
    return found


def _as_labelled(
    shard: pathlib.Path, labels: Labels, about: Mapping[str, Any], asked: Asked
) -> list[_Question]:
    rules = dict(about["labels"])
    filtered = rules.pop("filter_references")
    outlines = shard_outlines(shard, asked.prompts, asked.digest)
    said = shard_labels(shard_keys(shard, labels.reads, labels.folder), labels, LabelRules(**rules))
    if len(said.unknown):
        raise UserError(
            f"{labels.folder} has no verdicts on all of {shard}: run `srpo judge` again"
        )
    starts = np.concatenate([[0], outlines.branch_ends])
    questions = []
    for i, skeleton in enumerate(outlines.skeletons(said.branch)):
        wanted = _wanted(outlines.at[starts[i] : starts[i + 1]].tolist(), about)
        used = not filtered or bool(said.reference[i] == SAFE)
        lacks = used and not choose_pairs(skeleton, **about["pairs"])
        questions.append(_Question(skeleton.id, used, lacks, bool(wanted)))
    return questions


def _wanted(points: Iterable[int], about: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(branch point, k) of what is to be sampled of a tree. points: of its branches, of which those
    of a point are numbered from 0 on. about: of the plan.
    """
    there = Counter(points)
    if about["pairs"]["branch_points"] == "first":  # training looks at no other
        there = Counter({0: there[0]})
    return [
        (at, k)
        for at in sorted(there)
        for k in range(there[at], min(there[at] + about["branches"], about["max_branches"]))
    ]


def _unfinished(paths: Sequence[pathlib.Path]) -> int:
    """The first part that was begun and is not whole; 0 when there is none."""
    folder = paths[0].parent
    for number in range(1, count_plans(folder) + 1):
        plan = read_plan(folder, number)
        if not all(shard_done(path) for path, _ in shards_of_plan(paths, plan)):
            return number
    return 0


def _up_to(paths: Sequence[pathlib.Path], number: int) -> list[pathlib.Path]:
    """These shards, and those of the parts below `number` that belong to them."""
    parts = (_of_part(path, part) for path in paths for part in range(1, number))
    return [*paths, *(path for path in parts if path.is_file())]


def _of_part(path: pathlib.Path, number: int) -> pathlib.Path:
    return path.with_name(part_stem(_stem(path), number) + SUFFIX)


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(SUFFIX)
