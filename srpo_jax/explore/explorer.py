"""From records to tree records: branches after every prefix of the reference path."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.errors import UserError
from srpo_jax.explore.self_reference import TRIES
from srpo_jax.inference.policy import Policy
from srpo_jax.inference.prefix_sampler import Sample, Sampler, SampleRequest


class Explorer:
    """Samples the branches of some questions at a time, and makes tree records of them.

    rows: questions at a time; `batch` is what the mesh makes of it, a few more perhaps. references:
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
        rows: int,
        references: Mapping[str, tuple[Record, Sequence[np.ndarray]]] | None,
    ):
        self.cfg, self.policy, self.provenance = cfg, policy, provenance
        self.batch = policy.rows(rows)
        self._references = references
        first_only = references is None or cfg.explore.branch_points == "first"
        if references is None:
            path_tokens, steps = [0] * len(records), 1
        else:
            known = [references[record.id] for record in records if record.id in references]
            records = [record for record, _ in known]
            path_tokens = [sum(map(len, pieces[:-2])) for _, pieces in known]
            steps = max((len(pieces) - 1 for _, pieces in known), default=1)
        self._first_only = first_only
        self._branches = TRIES if references is None else cfg.explore.branches
        tokens, patches = policy.budgets(records, path_tokens)
        self.sampler = Sampler(
            policy.model,
            policy.params,
            policy.processor,
            batch=self.batch,
            branches=self._branches * (1 if first_only else steps),
            prompt_tokens=tokens,
            patches=patches,
            max_new_tokens=cfg.explore.max_new_tokens,
            temperature=cfg.explore.temperature,
            mesh=policy.mesh,
        )

    def __call__(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The tree records of at most `batch` records, in their order; a question that has no
        reference path is left out.
        """
        if self._references is None:
            known = [(record, ()) for record in records]
        else:
            known = [self._references[r.id] for r in records if r.id in self._references]
        plans = [self._plan(len(pieces) - 1) for _, pieces in known]
        requests = [
            self._request(record, pieces, plan)
            for (record, pieces), plan in zip(known, plans, strict=True)
        ]
        trees = []
        for (record, pieces), plan, samples in zip(
            known, plans, self.sampler(requests), strict=True
        ):
            steps = record.steps if pieces else ()
            branches = [
                self._branch(steps[:at], at, k, sample)
                for (at, k), sample in zip(plan, samples, strict=True)
            ]
            if not pieces:  # whatever the record says: the paths are to come from the policy
                record = dataclasses.replace(record, steps=(), reply="")
            form = self.policy.path_format
            trees.append(make_tree_record(record, pieces, branches, self.provenance, form))
        return trees

    def _request(
        self, record: Record, pieces: Sequence[np.ndarray], plan: Sequence[tuple[int, int]]
    ) -> SampleRequest:
        """What the sampler is to do for one question."""
        ends = np.cumsum([0, *map(len, pieces[:-1])])
        longest = plan[-1][0]
        name = "reference" if self._references is None else None
        return SampleRequest(
            prompt=self.policy.encode(record),
            path=np.concatenate([np.zeros(0, np.int32), *pieces[:longest]]),
            starts=tuple(int(ends[at]) for at, _ in plan),
            seeds=tuple(branch_seed(self.cfg.seed, record.id, name or at, k) for at, k in plan),
            name=f"record {record.id!r}",
        )

    def _plan(self, steps: int) -> list[tuple[int, int]]:
        """(branch point, k) of every branch of a reference path with so many steps."""
        points = 1 if self._first_only else steps
        return [(at, k) for at in range(points) for k in range(self._branches)]

    def _branch(self, prefix: Sequence[str], at: int, k: int, sample: Sample) -> dict[str, Any]:
        """A branch in the form of the tree schema."""
        text = self.policy.processor.decode(sample.tokens.tolist())
        steps, reply, status = self.policy.read_turn(prefix, text, finished=sample.finished)
        return {
            "at": at,
            "k": k,
            "parent": None,
            "tokens": sample.tokens.tolist(),
            "text": text,
            "finished": sample.finished,
            "logp": sample.logp,
            "status": status,
            "step_texts": list(steps),
            "reply_text": reply,
        }


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
