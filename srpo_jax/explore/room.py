"""How much room the questions of an exploration take: what the sampler is shaped for.

It is found once for a run, from token counts and the headers of pictures, and kept beside the
shards (room.json): a later start, or another worker, neither opens a picture nor tokenises a path.
Reference paths are tokenised again when their questions come up, so none is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json
from srpo_jax.inference.policy import Policy

FILE = "room.json"
Reference = tuple[Record, Sequence[np.ndarray]]  # see Policy.reference


class References(Mapping[str, Reference]):
    """The reference paths of the records, by id: each is tokenised when it is asked for. own: those
    of other questions, which are tokens already.
    """

    def __init__(
        self,
        policy: Policy,
        records: Sequence[Record],
        own: Mapping[str, Reference] = MappingProxyType({}),
    ):
        self._policy, self._own = policy, own
        self._records = {record.id: record for record in records}

    def __getitem__(self, name: str) -> Reference:
        if name in self._own:
            return self._own[name]
        return self._policy.reference(self._records[name])

    def __contains__(self, name: object) -> bool:
        return name in self._records or name in self._own

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._records

    def __len__(self) -> int:
        return len(self._records) + len(self._own)


@dataclass(frozen=True)
class Room:
    """tokens: of any question and its path up to the last branch point; patches: of any question;
    steps: of the longest path; last: tokens of the longest last step.
    """

    tokens: int
    patches: int
    steps: int = 1
    last: int = 0


def room_for(
    policy: Policy,
    records: Sequence[Record],
    references: Mapping[str, Reference] | None,
    forced: int,
) -> Room:
    """The room of all records. references: None when whole paths are sampled; a question without
    one is not explored. forced: tokens that every turn is made to begin with.

    Raises UserError, naming the record, for a reference path that cannot be tokenised and for a
    picture that is missing or has no good header.
    """
    if references is None:
        return Room(*policy.budgets(records, [forced] * len(records)))
    known = [record for record in records if record.id in references]
    steps, last = [1], [0]

    def paths() -> Iterator[int]:
        for record in known:
            _, pieces = references[record.id]
            steps[0] = max(steps[0], len(pieces) - 1)
            last[0] = max(last[0], len(pieces[-2]))
            yield max(sum(map(len, pieces[:-2])), forced)

    tokens, patches = policy.budgets(known, paths())
    return Room(tokens, patches, steps[0], last[0])


def kept_room(folder: pathlib.Path, run: Mapping[str, Any]) -> Room | None:
    """The room that was found before for the run in `folder`. run: what decides it."""
    try:
        found = read_json(folder / FILE)
        if found.pop("run") == _digest(run) and all(type(x) is int for x in found.values()):
            return Room(**found)
    except (OSError, UserError, KeyError, TypeError):
        pass
    return None


def keep_room(folder: pathlib.Path, run: Mapping[str, Any], room: Room) -> None:
    """For kept_room."""
    write_json(folder / FILE, {"run": _digest(run), **asdict(room)})


def _digest(run: Mapping[str, Any]) -> str:
    text = json.dumps({**run, "created_by": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
