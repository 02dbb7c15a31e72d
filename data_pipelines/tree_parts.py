"""Further parts of an exploration: more branches for some questions, in shards of their own.

Part N (1, 2, ...) of a folder of trees is its plan, more-N.jsonl, and for every shard of the first
exploration that has a question of the plan one more: SHARD.more-N.array_record. A tree in it is the
whole question, with the branches that it had and the new ones, and it stands in the place of the
earlier tree, which nobody touches.

A plan is written once, before its shards (json_parts.py). Its first row says what decided it, the
others which trees of a shard it is about:

    {"part": 1, ...}
    {"shard": "trees-00000-of-00004", "trees": [3, 17], "ids": ["q3", "q17"]}
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.data_pipelines.json_parts import iter_part, part_done, write_part
from srpo_jax.data_pipelines.records import RecordError

_PART = re.compile(r"(.+)\.more-([1-9]\d*)")


class Chosen(NamedTuple):
    """Questions of a shard: trees, their numbers in it, ascending; ids, their names."""

    trees: list[int]
    ids: list[str]


class Plan(NamedTuple):
    """about: what decided it, as JSON; "part" is its number. shards: by the names of the shards of
    the first exploration, without their ending; those of which no question was chosen are not in.
    """

    about: dict[str, Any]
    shards: dict[str, Chosen]

    @property
    def number(self) -> int:
        return self.about["part"]


def part_stem(stem: str, number: int) -> str:
    """The name of the shard of a part that belongs to a shard; of part 0 that shard's own."""
    return f"{stem}.more-{number}" if number else stem


def first_stem(stem: str) -> tuple[str, int]:
    """(the shard of the first exploration, number of the part) of a shard; 0: it is that one."""
    found = _PART.fullmatch(stem)
    return (found[1], int(found[2])) if found else (stem, 0)


def plan_path(folder: str | os.PathLike, number: int) -> pathlib.Path:
    """Where the plan of a part lies."""
    return pathlib.Path(folder) / f"more-{number}.jsonl"


def count_plans(folder: str | os.PathLike) -> int:
    """How many parts were begun in a folder of trees; they have the numbers from 1 on."""
    count = 0
    while part_done(plan_path(folder, count + 1)):
        count += 1
    return count


def write_plan(folder: str | os.PathLike, plan: Plan) -> None:
    """Writes a plan, whole or not at all."""
    rows = [{"shard": stem, **chosen._asdict()} for stem, chosen in plan.shards.items()]
    write_part(plan_path(folder, plan.number), [plan.about, *rows])


def read_plan(folder: str | os.PathLike, number: int) -> Plan:
    """The plan of a part. Errors: RecordError when there is none, or it is damaged."""
    path = plan_path(folder, number)
    if not part_done(path):
        raise RecordError(f"{path}: is missing, and there are shards of this part; put it back")
    rows = iter_part(path)
    try:
        about = dict(next(rows, {}))
        shards = {row["shard"]: Chosen(list(row["trees"]), list(row["ids"])) for row in rows}
        if about["part"] == number and all(map(_is_chosen, shards.values())):
            return Plan(about, shards)
    except (KeyError, TypeError, ValueError):
        pass
    raise RecordError(f"{path}: no plan of part {number}")


def newest(folder: pathlib.Path, stems: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """int64 [n, 2]: where each of n questions stands, in the order of the first exploration: in
    which of the shards, and as which record of it.

    stems, counts: the names of the shards, without their ending, and how many trees are in each. A
    shard of a part whose first one is not among them stands for itself. Errors: RecordError for a
    part that does not fit what is there.
    """
    groups: dict[str, list[tuple[int, int]]] = {}
    for shard, stem in enumerate(stems):
        first, number = first_stem(stem)
        groups.setdefault(first, []).append((number, shard))
    plans: dict[int, Plan] = {}
    tables = []
    for first, members in groups.items():
        (_, shard), *parts = sorted(members)
        table = _all_of(shard, counts[shard])
        for number, shard in parts:
            if number not in plans:
                plans[number] = read_plan(folder, number)
            trees = plans[number].shards.get(first, Chosen([], [])).trees
            if len(trees) != counts[shard] or max(trees, default=0) >= len(table):
                raise RecordError(
                    f"{plan_path(folder, number)}: it does not fit the shards of {first}"
                )
            table[trees] = _all_of(shard, counts[shard])
        tables.append(table)
    return np.concatenate(tables)


def missing_first(stems: Sequence[str]) -> str:
    """Of the shards of a whole folder: one whose first one is not there; "" when there is none."""
    there = set(stems)
    return next((stem for stem in stems if first_stem(stem)[0] not in there), "")


def _all_of(shard: int, count: int) -> np.ndarray:
    return np.stack([np.full(count, shard, np.int64), np.arange(count, dtype=np.int64)], axis=1)


def _is_chosen(chosen: Chosen) -> bool:
    trees, ids = chosen
    whole = all(type(number) is int and number >= 0 for number in trees)
    rising = all(low < high for low, high in zip(trees, trees[1:]))
    return whole and rising and len(trees) == len(ids) and all(type(name) is str for name in ids)


def planned(folder: str | os.PathLike) -> list[str]:
    """The names of all shards of the parts that were begun, without their ending."""
    found = []
    for number in range(1, count_plans(folder) + 1):
        found += [part_stem(stem, number) for stem in read_plan(folder, number).shards]
    return found
