"""From records to tree records: branches after every prefix of the reference path."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.path_formats.statuses import OK, check_readable, count_statuses
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.errors import UserError
from srpo_jax.explore.self_reference import TRIES
from srpo_jax.inference.path_scores import PathScorer, chosen_points
from srpo_jax.inference.policy import Policy
from srpo_jax.inference.prefix_sampler import Sample, Sampler, SampleRequest
from srpo_jax.inference.sampling_mesh import Shape
from srpo_jax.models.inputs import EncodedPrompt


class Explorer:
    """Samples the branches of some questions at a time, and makes tree records of them.

    most: questions that there ever are at a time; `batch` is how many of them are sampled at once,
    as explore.batch and the mesh have it, a few more perhaps. references:
    the record and the token pieces of the reference path of every question that may come, by id;
    None: whole paths are sampled, TRIES a question, of which a reference path can be chosen
    (self_reference.py). The sampler is shaped for all of records, so that it compiles once, and so
    that a branch is the same whichever shards are still to be made.
    """

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        records: Sequence[Record],
        provenance: Mapping[str, Any],
        *,
        most: int,
        references: Mapping[str, tuple[Record, Sequence[np.ndarray]]] | None,
        refuse_unreadable: bool = True,
    ):
        self.cfg, self.policy, self.provenance = cfg, policy, provenance
        self._refuse_unreadable = refuse_unreadable
        self._references = references
        first_only = references is None or cfg.explore.branch_points == "first"
        known: list[tuple[Record, Sequence[np.ndarray]]] = []
        if references is None:
            path_tokens, steps = [0] * len(records), 1
        else:
            known = [references[record.id] for record in records if record.id in references]
            records = [record for record, _ in known]
            path_tokens = [sum(map(len, pieces[:-2])) for _, pieces in known]
            steps = max((len(pieces) - 1 for _, pieces in known), default=1)
        self._first_only = first_only
        self._statuses: Counter[str] = Counter()
        self._unreadable = ""  # the text of a branch that is not ok
        self._branches = TRIES if references is None else cfg.explore.branches
        # Text that every turn is made to begin with; a reference path begins as it does.
        self._forced = policy.forced_start(cfg.explore.prefix)
        points = 1 if first_only else steps
        if cfg.explore.max_points:
            points = min(points, cfg.explore.max_points)
        tokens, patches = policy.budgets(
            records, [max(count, len(self._forced)) for count in path_tokens]
        )
        self._scorer = None
        if cfg.explore.max_points and points < steps:
            last = max(len(pieces[-2]) for _, pieces in known)  # the sampler needs no room for it
            self._scorer = PathScorer(policy, tokens=tokens + last, patches=patches, steps=steps)
        shape = Shape(tokens, self._branches * points, cfg.explore.max_new_tokens)
        self.batch = policy.rows(cfg.explore.batch, most, shape)
        self.sampler = Sampler(
            policy.model,
            policy.params,
            policy.processor,
            batch=self.batch,
            branches=shape.slots,
            prompt_tokens=tokens,
            patches=patches,
            max_new_tokens=cfg.explore.max_new_tokens,
            temperature=cfg.explore.temperature,
            mesh=policy.mesh,
        )

    def __call__(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The tree records of at most `batch` records, in their order; a question that has no
        reference path is left out. UserError when most answers cannot be read.
        """
        if self._references is None:
            known = [(record, ()) for record in records]
        else:
            known = [self._references[r.id] for r in records if r.id in self._references]
        prompts = [self.policy.encode(record) for record, _ in known]
        plans = [self._plan(*each) for each in zip(prompts, (pieces for _, pieces in known))]
        samples = self._sample(known, prompts, plans)
        trees = []
        for (record, pieces), plan, own in zip(known, plans, samples, strict=True):
            steps = record.steps if pieces else ()
            branches = [
                self._branch(steps[:at], at, k, sample)
                for (at, k), sample in zip(plan, own, strict=True)
            ]
            if not pieces:  # whatever the record says: the paths are to come from the policy
                record = dataclasses.replace(record, steps=(), reply="")
            form = self.policy.path_format
            trees.append(make_tree_record(record, pieces, branches, self.provenance, form))
            self._note(branches)
        return trees

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

    def _sample(
        self,
        known: Sequence[tuple[Record, Sequence[np.ndarray]]],
        prompts: Sequence[EncodedPrompt],
        plans: Sequence[Sequence[tuple[int, int]]],
    ) -> list[list[Sample]]:
        """The samples of every question, in the order of its plan. A forced start stands before
        the branches that leave at the question: those are a request of their own then.
        """
        requests, owners = [], []
        for i, ((record, pieces), prompt, plan) in enumerate(
            zip(known, prompts, plans, strict=True)
        ):
            early = [item for item in plan if item[0] == 0 and len(self._forced)]
            late = plan[len(early) :]
            for part, path in ((early, [self._forced]), (late, pieces[: plan[-1][0]])):
                if part:
                    requests.append(self._request(record, prompt, path, part))
                    owners.append(i)
        found: list[list[Sample]] = [[] for _ in known]
        for i, samples in zip(owners, self.sampler(requests), strict=True):
            found[i] += samples
        return found

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
    """Makes tree records of reference paths without a branch, `batch` questions at a time.

    references: as in Explorer, of every question that may come.
    """

    batch = 64

    def __init__(
        self,
        policy: Policy,
        provenance: Mapping[str, Any],
        references: Mapping[str, tuple[Record, Sequence[np.ndarray]]],
    ):
        self._provenance, self._form = provenance, policy.path_format
        self._references = references

    def __call__(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The tree records, in the order of the records."""
        known = [self._references[record.id] for record in records]
        return [
            make_tree_record(record, pieces, [], self._provenance, self._form)
            for record, pieces in known
        ]


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
