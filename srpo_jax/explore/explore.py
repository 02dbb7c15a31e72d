"""Explore: after every prefix of the reference path, sample K branches to the end and judge them.

    records -> shards of reasoning-tree records under WORKDIR/trees, and trees/summary.json

A shard is written when all its questions are done, atomically; a run that is started again skips
the shards that are there. All randomness is f(seed, record id, branch point, k), so an interrupted
run ends with the same trees, and so do any number of processes and hosts that run the same command
on the same folder at the same time: each takes the next shard that nobody has (claims.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from srpo_jax.arbiter.ssui_mini_rules import make_arbiter
from srpo_jax.arbiter.verdict import Arbiter, Case
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.data_pipelines.path_format import parse_path
from srpo_jax.data_pipelines.records import Record, read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_store import (
    branch_label,
    fingerprint,
    make_tree_record,
    read_shards,
    shard_done,
    shard_path,
    write_shard,
)
from srpo_jax.distributed.process_info import detect_process
from srpo_jax.errors import UserError
from srpo_jax.explore.provenance import RUN, make_provenance, refuse_strangers, write_json
from srpo_jax.explore.self_reference import TRIES, split_pieces, with_reference
from srpo_jax.explore.shard_leases import ShardLeases, pause
from srpo_jax.explore.summary import format_summary, summarise
from srpo_jax.files import read_json
from srpo_jax.inference.policy import Policy, choose_questions, load_policy
from srpo_jax.inference.prefix_sampler import Sample, Sampler, SampleRequest


def explore(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    model_dir: str | os.PathLike | None = None,
    arbiter: Arbiter | None = None,
) -> pathlib.Path:
    """Run or finish the exploration that `cfg` describes. Returns the folder of the trees.

    model_dir: the policy, instead of cfg.model.path. arbiter: instead of the one that
    cfg.arbiter.kind names. Raises UserError for bad records, pictures or settings, and when
    `workdir` holds shards of another run.
    """
    cfg = as_config(cfg)
    source = records_path(cfg.data.train_records, workdir, field="data.train_records")
    records = choose_questions(read_records(source), cfg.explore.num_questions, seed=cfg.seed)
    arbiter = arbiter or make_arbiter(cfg.arbiter.kind)
    policy = load_policy(cfg, model_dir=model_dir)
    provenance = make_provenance(cfg, policy, arbiter, records)

    folder = pathlib.Path(workdir) / "trees"
    count = min(cfg.explore.shards, len(records))
    paths = [shard_path(folder, i, count) for i in range(count)]
    edges = [i * len(records) // count for i in range(count + 1)]
    shards = [records[start:end] for start, end in zip(edges, edges[1:])]
    run = {**provenance, "shards": count}
    refuse_strangers(folder, run)
    todo = [i for i in range(count) if not shard_done(paths[i])]
    place = detect_process(cfg.processes, os.environ)

    if todo:
        rows = min(cfg.explore.batch, max(map(len, shards)))
        explorer = Explorer(cfg, policy, arbiter, records, provenance, rows=rows)
        write_json(folder / RUN, run)
        progress = Progress(sum(len(shards[i]) for i in todo))
        print(
            f"explore: {len(records)} questions in {count} shards, {count - len(todo)} of them "
            f"done before; {cfg.explore.branches} branches at each branch point",
            flush=True,
        )
        first = place.index * len(todo) // place.count  # workers begin apart from each other
        todo = todo[first:] + todo[:first]
        for i in _to_make(paths, todo, folder, lambda i: progress.skip(len(shards[i]))):
            trees = []
            for start in range(0, len(shards[i]), explorer.batch):
                batch = shards[i][start : start + explorer.batch]
                made = explorer(batch)
                progress(len(batch), sum(len(tree["branches"]) for tree in made))
                trees += made
            if not shard_done(paths[i]):  # by a worker that took this one for dead
                write_shard(paths[i], trees)

    summary = _summary_there(folder) if place.index else None
    summary = summary or _summarise(cfg, folder, records, provenance)
    if not summary["questions"]:
        raise UserError(
            f"{folder}: the policy found no safe path for any of {len(records)} questions in "
            f"{TRIES} tries; use explore.reference=dataset"
        )
    return folder


def _to_make(
    paths: Sequence[pathlib.Path],
    todo: Sequence[int],
    folder: pathlib.Path,
    made_elsewhere: Callable[[int], None],
) -> Iterator[int]:
    """The shards of `todo` that this process is to make, one after the other, claimed. Ends when
    all of them are there, whoever made them; those of a worker that died are made here.
    """
    names = {paths[i].name: i for i in todo}  # keeps the order
    waiting = False
    with ShardLeases(folder.with_name(folder.name + ".claims")) as claims:
        while names:
            name = claims.take(names)
            if name is None and not waiting:
                print(f"explore: {len(names)} shards are being made by others", flush=True)
                waiting = True
            if name is not None:
                i = names.pop(name)
                if shard_done(paths[i]):  # since the first look: another worker was faster
                    made_elsewhere(i)
                else:
                    yield i
                claims.release()
                continue
            pause()
            for name in [n for n, i in names.items() if shard_done(paths[i])]:
                made_elsewhere(names.pop(name))


class Explorer:
    """Turns `rows` records (or a few more, for the mesh) into tree records at a time.

    Its samplers are shaped for all of `records`, so that they compile once and a branch is the
    same whichever shards are still to do.
    """

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        arbiter,
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
        """Tree records in the order of `records`; with reference=self, questions without a safe
        path of their own are left out."""
        prompts = [self.policy.encode(record) for record in records]
        if self.own_reference:
            found = self._own_references(records, prompts)
        else:
            found = [(r, self.policy.reference(r)) for r in records]
        kept = [i for i, item in enumerate(found) if item is not None]

        requests, plans = [], []
        for i in kept:
            record, pieces = found[i]
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
        branches = self._judge([found[i][0] for i in kept], plans, samples)
        return [make_tree_record(*found[i], own, self.provenance) for i, own in zip(kept, branches)]

    def _plan(self, steps: int) -> list[tuple[int, int]]:
        """(branch point, k) of every branch of a path with so many steps."""
        points = 1 if self.first_only else steps
        return [(at, k) for at in range(points) for k in range(self.cfg.explore.branches)]

    def _judge(
        self,
        records: Sequence[Record],
        plans: Sequence[Sequence[tuple[int, int]]],
        samples: Sequence[Sequence[Sample]],
    ) -> list[list[dict[str, Any]]]:
        """The branches of every record in the form of the tree schema, all judged in one call.

        The arbiter sees a branch's whole path: the reference steps before it, then its own. So
        step_verdicts has one verdict for each of those steps, in that order.
        """
        cases, texts = [], []
        for record, plan, own in zip(records, plans, samples, strict=True):
            for (at, _), sample in zip(plan, own, strict=True):
                texts.append(self.processor.decode(sample.tokens.tolist()))
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
        """Per record the first of TRIES sampled whole paths that counts as safe, or None."""
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

    def _first_safe(self, record: Record, branches: Sequence[dict[str, Any]]):
        rules = arguments(branch_label, self.cfg.arbiter)
        for branch in branches:
            label = branch_label(branch, **rules)
            if label is True and branch["finished"]:
                pieces = split_pieces(branch["tokens"], self.processor)
                if pieces is not None:
                    return with_reference(record, pieces, self.processor), pieces
        return None


class Progress:
    """Prints how far it is, how fast, and when it will be done; at most about once a second."""

    def __init__(self, total: int):
        self.total, self.done, self.branches = total, 0, 0
        self.start = self.last = time.monotonic()

    def skip(self, questions: int) -> None:
        """So many were made by another worker."""
        self.total -= questions

    def __call__(self, questions: int, branches: int) -> None:
        self.done += questions
        self.branches += branches
        now = time.monotonic()
        if now - self.last < 1 and self.done < self.total:
            return
        self.last, spent = now, max(now - self.start, 1e-9)
        left = spent / self.done * (self.total - self.done)
        print(
            f"explore: {self.done}/{self.total} questions, {self.branches} branches, "
            f"{self.branches / spent:.1f} branches/s, {left:.0f} s left",
            flush=True,
        )


def branch_seed(seed: int, record_id: str, at: int | str, k: int) -> int:
    """The sampler's seed of one branch, 64 bits: a function of its arguments alone."""
    text = json.dumps([seed, record_id, at, k])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _summary_there(folder: pathlib.Path) -> dict[str, Any] | None:
    """The summary that another worker wrote of these shards, if one did."""
    try:
        found = read_json(folder / "summary.json")
    except (OSError, UserError):
        return None
    return found if found.get("fingerprint") == fingerprint(folder) else None


def _summarise(cfg: Config, folder: pathlib.Path, records, provenance) -> dict[str, Any]:
    """Print the table and write summary.json."""
    trees = read_shards(folder)
    kept = set()

    def passing():
        for tree in trees:
            kept.add(tree["id"])
            yield tree

    rules = arguments(summarise, cfg.arbiter)
    summary = summarise(passing(), **rules)
    dropped = [record.id for record in records if record.id not in kept]
    print(format_summary(summary))
    if dropped:
        names = ", ".join(map(repr, dropped[:10])) + (", ..." if len(dropped) > 10 else "")
        print(f"left out, no safe path in {TRIES} tries: {len(dropped)} questions ({names})")
    summary = {
        **summary,
        **rules,
        "dropped": dropped,
        "provenance": provenance,
        "fingerprint": fingerprint(folder),
    }
    write_json(folder / "summary.json", summary)
    return summary
