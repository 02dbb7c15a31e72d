"""From records to tree records: branches after every prefix of the reference path."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.path_formats.statuses import OK, check_readable, count_statuses
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.errors import UserError
from srpo_jax.explore.more import More
from srpo_jax.explore.room import Reference, Room
from srpo_jax.explore.self_reference import TRIES
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine, slots_for
from srpo_jax.inference.engine.requests import Sample, SampleRequest
from srpo_jax.inference.path_scores import PathScorer, chosen_points
from srpo_jax.inference.policy import Policy
from srpo_jax.inference.sampling_mesh import Shape
from srpo_jax.models.inputs import EncodedPrompt

Key = TypeVar("Key")


@dataclasses.dataclass
class _Asked:
    """A question of which some branches are still to come. earlier: those that it has; samples: of
    its requests, in order, None for what is not done."""

    key: Any
    record: Record
    pieces: Sequence[np.ndarray]
    earlier: Sequence[dict[str, Any]]
    plan: list[tuple[int, int]]
    samples: list[list[Sample] | None]


class Explorer:
    """Samples the branches of questions, and makes tree records of them.

    most: questions that there ever are; as many are sampled at once as explore.batch and the mesh
    have it. room: of all records that are explored, so that the sampler compiles once, and a branch
    is the same whichever shards are still to be made. references: the record and the token pieces
    of the reference path of every question that may come, by id; None: whole paths are sampled,
    TRIES a question, of which a reference path can be chosen (self_reference.py). more: the trees
    that get more branches, if this is a further part; no other record may come then.
    """

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        provenance: Mapping[str, Any],
        *,
        most: int,
        room: Room,
        references: Mapping[str, Reference] | None,
        more: More | None = None,
        refuse_unreadable: bool = True,
    ):
        self.cfg, self.policy, self.provenance = cfg, policy, provenance
        self._more = more
        self._refuse_unreadable = refuse_unreadable
        self._references = references
        self._first_only = references is None or cfg.explore.branch_points == "first"
        self._statuses: Counter[str] = Counter()
        self._unreadable = ""  # the text of a branch that is not ok
        self._branches = TRIES if references is None else cfg.explore.branches
        # Text that every turn is made to begin with; a reference path begins as it does.
        self._forced = policy.forced_start(cfg.explore.prefix)
        points = 1 if self._first_only else room.steps
        if cfg.explore.max_points:
            points = min(points, cfg.explore.max_points)
        self._scorer = None
        if more is None and cfg.explore.max_points and points < room.steps:
            # The sampler needs no room for the last step.
            self._scorer = PathScorer(
                policy, tokens=room.tokens + room.last, patches=room.patches, steps=room.steps
            )
        slots = cfg.explore.slots or slots_for(self._branches * points)
        shape = Shape(room.tokens, slots, cfg.explore.max_new_tokens, room.patches)
        self.engine = Engine(
            policy.model,
            policy.params,
            policy.processor,
            rows=policy.rows(cfg.explore.batch, most, shape),
            slots=slots,
            branches=self._branches * points,
            prompt_tokens=room.tokens,
            patches=room.patches,
            max_new_tokens=cfg.explore.max_new_tokens,
            sampling=Sampling(**arguments(Sampling, cfg.explore)),
            stop=cfg.explore.stop,
            mesh=policy.mesh,
        )

    def stream(
        self, keyed: Iterable[tuple[Key, Record]]
    ) -> Iterator[tuple[Key, dict[str, Any] | None]]:
        """(key, tree record) of every question, as each is done; None for one that has no reference
        path. keyed is read ahead, in a thread of its own. UserError when most answers cannot be
        read.
        """
        asked: dict[int, tuple[_Asked, int]] = {}  # by the number of a request
        left_out: collections.deque[Key] = collections.deque()

        def requests() -> Iterator[SampleRequest]:
            number = 0
            for key, record in keyed:
                if self._references is not None and record.id not in self._references:
                    left_out.append(key)
                    continue
                question, wanted = self._ask(key, record)
                for part, request in enumerate(wanted):
                    asked[number] = question, part
                    number += 1
                    yield request

        for number, samples in self.engine.stream(requests()):
            while left_out:
                yield left_out.popleft(), None
            question, part = asked.pop(number)
            question.samples[part] = samples
            if None not in question.samples:
                yield question.key, self._tree(question)
        while left_out:
            yield left_out.popleft(), None

    def _ask(self, key: Any, record: Record) -> tuple[_Asked, list[SampleRequest]]:
        """A question and what the engine is to do for it, in the order of its plan. A forced start
        stands before the branches that leave at the question: those are a request of their own.
        """
        pieces: Sequence[np.ndarray] = ()
        if self._references is not None:
            record, pieces = self._references[record.id]
        prompt = self.policy.encode(record)
        earlier: Sequence[dict[str, Any]] = ()
        if self._more is None:
            plan = self._plan(prompt, pieces)
        else:
            earlier = self._more[record.id]["branches"]
            plan = self._more.wanted(earlier)
        early = [item for item in plan if item[0] == 0 and len(self._forced)]
        late = plan[len(early) :]
        requests = [
            self._request(record, prompt, path, part)
            for part, path in ((early, [self._forced]), (late, pieces[: plan[-1][0]]))
            if part
        ]
        samples: list[list[Sample] | None] = [None] * len(requests)
        return _Asked(key, record, pieces, earlier, plan, samples), requests

    def _tree(self, question: _Asked) -> dict[str, Any]:
        record, pieces = question.record, question.pieces
        steps = record.steps if pieces else ()
        samples = [sample for own in question.samples for sample in own or ()]
        branches = [
            self._branch(steps[:at], at, k, sample)
            for (at, k), sample in zip(question.plan, samples, strict=True)
        ]
        if not pieces:  # whatever the record says: the paths are to come from the policy
            record = dataclasses.replace(record, steps=(), reply="")
        self._note(branches)
        branches = sorted([*question.earlier, *branches], key=lambda each: (each["at"], each["k"]))
        form = self.policy.path_format
        return make_tree_record(record, pieces, branches, self.provenance, form)

    def _note(self, branches: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError when most of the branches so far do not follow the path format."""
        for branch in branches:
            self._statuses[branch["status"]] += 1
            if branch["status"] != OK and not self._unreadable:
                self._unreadable = branch["text"]
        if not self._refuse_unreadable:
            return
        counts = count_statuses(self._statuses)
        total = self._statuses.total()
        check_readable(counts, total, self._unreadable, self.policy.format.name)

    def _request(
        self,
        record: Record,
        prompt: EncodedPrompt,
        path: Sequence[np.ndarray],
        plan: Sequence[tuple[int, int]],
    ) -> SampleRequest:
        """What the sampler is to do for some branches: those of point i begin behind i of the
        pieces of `path`, or all behind a forced start.
        """
        ends = np.cumsum([0, *map(len, path)])
        forced = len(path) == 1 and path[0] is self._forced
        name = "reference" if self._references is None else None
        return SampleRequest(
            prompt=prompt,
            path=np.concatenate([np.zeros(0, np.int32), *path]),
            starts=tuple(int(ends[1] if forced else ends[at]) for at, _ in plan),
            seeds=tuple(branch_seed(self.cfg.seed, record.id, name or at, k) for at, k in plan),
            name=f"record {record.id!r}",
        )

    def _plan(self, prompt: EncodedPrompt, pieces: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        """(branch point, k) of every branch of a question."""
        points = range(1 if self._first_only else len(pieces) - 1)
        if self._scorer is not None and len(points) > self.cfg.explore.max_points:
            scores = self._scorer(prompt, pieces)
            points = chosen_points(scores, self.cfg.explore.max_points)
        return [(at, k) for at in points for k in range(self._branches)]

    def _branch(self, prefix: Sequence[str], at: int, k: int, sample: Sample) -> dict[str, Any]:
        """A branch in the form of the tree schema. A forced start belongs to it."""
        tokens = [*(self._forced.tolist() if at == 0 else ()), *sample.tokens.tolist()]
        return self.policy.branch(prefix, at, k, tokens, sample)


class ReferencesOnly:
    """Makes tree records of reference paths without a branch.

    references: as in Explorer, of every question that may come.
    """

    engine = None

    def __init__(
        self,
        policy: Policy,
        provenance: Mapping[str, Any],
        references: Mapping[str, Reference],
    ):
        self._provenance, self._form = provenance, policy.path_format
        self._references = references

    def stream(
        self, keyed: Iterable[tuple[Key, Record]]
    ) -> Iterator[tuple[Key, dict[str, Any] | None]]:
        """(key, tree record) of every question, in their order."""
        for key, record in keyed:
            if record.id not in self._references:  # no own path of it was judged safe
                yield key, None
                continue
            known, pieces = self._references[record.id]
            yield key, make_tree_record(known, pieces, [], self._provenance, self._form)


def with_steps(records: Sequence[Record], source: os.PathLike) -> list[Record]:
    """The records of the file `source` that have a reference path. UserError when none has."""
    found = [record for record in records if record.steps]
    if not found:
        raise UserError(f"{source}: no record has a reference path (steps) to write")
    return found


def branch_seed(seed: int, record_id: str, at: int | str, k: int) -> int:
    """The sampler's seed of one branch, 64 bits: a function of its arguments alone."""
    text = json.dumps([seed, record_id, at, k])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
