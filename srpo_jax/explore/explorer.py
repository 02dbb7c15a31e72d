"""From records to tree records: branches after every prefix of the reference path, judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.arbiter.verdict import Arbiter, Case
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.path_format import parse_path
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_store import branch_label, make_tree_record
from srpo_jax.explore.self_reference import TRIES, split_pieces, with_reference
from srpo_jax.inference.policy import Policy
from srpo_jax.inference.prefix_sampler import Sample, Sampler, SampleRequest


class Explorer:
    """Makes tree records: samples the branches of some questions at a time and has them judged.

    rows: questions at a time; `batch` is what the mesh makes of it, a few more perhaps. records:
    all that may come. The samplers are shaped for all of them, so that they compile once, and so
    that a branch is the same whichever shards are still to be made.
    """

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        arbiter: Arbiter,
        records: Sequence[Record],
        provenance: dict[str, Any],
        *,
        rows: int,
    ):
        self.cfg, self.policy, self.arbiter, self.provenance = cfg, policy, arbiter, provenance
        self.processor = policy.processor
        self.own_reference = cfg.explore.reference == "self"
        self.batch = policy.rows(rows)
        self.first_only = cfg.explore.branch_points == "first"
        if self.own_reference:
            path_tokens = [cfg.explore.max_new_tokens] * len(records)
        else:
            pieces = [policy.reference(record) for record in records]
            path_tokens = [sum(map(len, p[:-2])) for p in pieces]
        # Own paths may have more steps than the given ones: the sampler then takes a second row.
        points = 1 if self.first_only else max(len(record.steps) for record in records)
        tokens, patches = policy.budgets(records, path_tokens)
        self.sampler = self._sampler(points * cfg.explore.branches, tokens, patches)
        if self.own_reference:
            self.first_sampler = self._sampler(TRIES, tokens, patches)

    def _sampler(self, branches: int, tokens: int, patches: int) -> Sampler:
        return Sampler(
            self.policy.model,
            self.policy.params,
            self.processor,
            batch=self.batch,
            branches=branches,
            prompt_tokens=tokens,
            patches=patches,
            max_new_tokens=self.cfg.explore.max_new_tokens,
            temperature=self.cfg.explore.temperature,
            mesh=self.policy.mesh,
        )

    def __call__(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The tree records of at most `batch` records, in their order. With explore.reference=self
        a question for which the policy finds no safe path of its own is left out.
        """
        prompts = [self.policy.encode(record) for record in records]
        if self.own_reference:
            found = self._own_references(records, prompts)
        else:
            found = [(r, self.policy.reference(r)) for r in records]
        kept = {i: item for i, item in enumerate(found) if item is not None}

        requests, plans = [], []
        for i, (record, pieces) in kept.items():
            plan = self._plan(len(pieces) - 1)
            ends = np.cumsum([0, *map(len, pieces[:-1])])
            longest = plan[-1][0]
            requests.append(
                SampleRequest(
                    prompt=prompts[i],
                    path=np.concatenate([np.zeros(0, np.int32), *pieces[:longest]]),
                    starts=tuple(int(ends[at]) for at, _ in plan),
                    seeds=tuple(branch_seed(self.cfg.seed, record.id, at, k) for at, k in plan),
                    name=f"record {record.id!r}",
                )
            )
            plans.append(plan)
        samples = self.sampler(requests)
        branches = self._judge([record for record, _ in kept.values()], plans, samples)
        return [
            make_tree_record(record, pieces, own, self.provenance)
            for (record, pieces), own in zip(kept.values(), branches)
        ]

    def _plan(self, steps: int) -> list[tuple[int, int]]:
        """(branch point, k) of every branch of a reference path with so many steps."""
        points = 1 if self.first_only else steps
        return [(at, k) for at in range(points) for k in range(self.cfg.explore.branches)]

    def _judge(
        self,
        records: Sequence[Record],
        plans: Sequence[Sequence[tuple[int, int]]],
        samples: Sequence[Sequence[Sample]],
    ) -> list[list[dict[str, Any]]]:
        """The branches of every record in the form of the tree schema. The arbiter is called once.

        It sees the whole path of a branch: the steps of the reference path before the branch point,
        then the branch's own. step_verdicts has one verdict for each of these steps, in that order.
        """
        cases, texts = [], []
        for record, plan, own in zip(records, plans, samples, strict=True):
            for (at, _), sample in zip(plan, own, strict=True):
                texts.append(self.processor.decode(sample.tokens.tolist(), after_text=at > 0))
                steps, reply = parse_path(texts[-1])
                cases.append(Case(record, record.steps[:at] + steps, reply, sample.finished))
        verdicts = iter(zip(texts, self.arbiter.judge(cases), strict=True))
        result = []
        for plan, own in zip(plans, samples, strict=True):
            branches = []
            for (at, k), sample in zip(plan, own, strict=True):
                text, judgement = next(verdicts)
                branches.append(
                    {
                        "at": at,
                        "k": k,
                        "tokens": sample.tokens.tolist(),
                        "text": text,
                        "finished": sample.finished,
                        "logp": sample.logp,
                        "reply_verdict": judgement.reply.value,
                        "path_verdict": judgement.path.value,
                        "step_verdicts": [verdict.value for verdict in judgement.steps],
                        "effective": judgement.effective,
                        "detail": judgement.detail,
                    }
                )
            result.append(branches)
        return result

    def _own_references(self, records, prompts) -> list[tuple[Record, list[np.ndarray]] | None]:
        """Samples TRIES whole paths of every record, and chooses one of them as _first_safe does;
        None for a record without a safe one.
        """
        plan = [(0, k) for k in range(TRIES)]
        requests = [
            SampleRequest(
                prompt=prompt,
                path=np.zeros(0, np.int32),
                starts=(0,) * TRIES,
                seeds=tuple(branch_seed(self.cfg.seed, record.id, "reference", k) for _, k in plan),
                name=f"record {record.id!r}",
            )
            for record, prompt in zip(records, prompts, strict=True)
        ]
        samples = self.first_sampler(requests)
        branches = self._judge(records, [plan] * len(records), samples)
        return [self._first_safe(*item) for item in zip(records, branches, strict=True)]

    def _first_safe(
        self, record: Record, branches: Sequence[dict[str, Any]]
    ) -> tuple[Record, list[np.ndarray]] | None:
        """The record with the first of these whole paths that counts as safe as its reference path,
        and the tokens of that path in pieces.
        """
        rules = arguments(branch_label, self.cfg.arbiter)
        for branch in branches:
            label = branch_label(branch, **rules)
            if label is True and branch["finished"]:
                pieces = split_pieces(branch["tokens"], self.processor)
                if pieces is not None:
                    return with_reference(record, pieces, self.processor), pieces
        return None


def branch_seed(seed: int, record_id: str, at: int | str, k: int) -> int:
    """The sampler's seed of one branch, 64 bits: a function of its arguments alone."""
    text = json.dumps([seed, record_id, at, k])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
