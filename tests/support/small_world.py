"""Five records with pictures, an arbiter that judges by arithmetic, and an engine that recites.

A tiny random policy never writes "Reply:", so what needs well-formed paths gets them from the
reciting engine, which stands in for srpo_jax.inference.engine.engine.Engine.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from srpo_jax.arbiter.verdict import Judgement, Verdict
from srpo_jax.configs import common
from srpo_jax.data_pipelines.records import Record, write_records
from srpo_jax.inference.engine.counts import Counts
from srpo_jax.inference.engine.requests import Sample
from tests.support.tiny import picture, tiny_qwen2_5_vl


def write_world(folder):
    """folder/model and folder/records.jsonl with its pictures. Returns a config for them."""
    tiny_qwen2_5_vl(folder / "model", seed=3)
    (folder / "images").mkdir()
    records = []
    for i in range(5):
        name = f"images/{i}.png"
        picture(56 + 28 * (i % 2), 56, seed=i).save(folder / name)
        steps = tuple(f"Look at {j}." for j in range(2 + i % 2))
        records.append(
            Record(f"r{i}", (name,), f"What is {i}?", steps, "It is safe.", risky=i % 2 == 0)
        )
    write_records(records, folder / "records.jsonl")
    return world_config(folder)


def world_config(folder):
    """The config for what write_world made."""
    config = common.get_config()
    config.model.path = str(folder / "model")
    config.data.train_records = config.data.test_records = str(folder / "records.jsonl")
    config.arbiter.kind = "arithmetic"
    config.explore.branches, config.explore.batch, config.explore.shards = 2, 2, 2
    config.explore.max_new_tokens, config.explore.temperature = 6, 3.0
    config.eval.batch, config.eval.max_new_tokens = 4, 6
    return config


class ArithmeticArbiter:
    """A verdict for every text: a function of the case, two thirds SAFE. Keeps its cases."""

    name = "arithmetic"

    def __init__(self, stop_at: int | None = None):
        self.cases, self.stop_at = [], stop_at

    def judge(self, cases):
        if self.stop_at is not None and len(self.cases) >= self.stop_at:
            raise KeyboardInterrupt
        self.cases += cases
        return [self._one(case) for case in cases]

    def verdict(self, steps, reply):
        """Of a whole path."""
        text = "\n".join([*steps, reply or ""])
        byte = hashlib.sha256(text.encode()).digest()[0]
        return Verdict.SAFE if byte % 3 else Verdict.UNSAFE

    def _one(self, case):
        verdict = Verdict(self.verdict(case.steps, case.reply))
        steps = (Verdict.SAFE,) * len(case.steps)
        return Judgement(verdict, Verdict.SAFE, steps, None, "by arithmetic")


class RecitingEngine:
    """Says one of LINES, chosen by the seed, after any prompt; keeps its requests. Of so many as it
    has rows the last is done first."""

    LINES = (
        "Look here.\nReply: Yes.",
        "Look there.\nThink.\nReply: No.",
        "Reply: no steps.",
        "No reply.\n",
        "Unfinished",
    )

    def __init__(self, model, params, processor, *, rows, **_):
        self.params, self.processor, self.rows = params, processor, rows
        self.counts, self.requests = Counts(), []

    def __call__(self, requests):
        found = dict(self.stream(requests))
        return [found[i] for i in range(len(requests))]

    def stream(self, requests):
        source = enumerate(requests)
        while some := list(itertools.islice(source, self.rows)):
            for number, request in reversed(some):
                yield number, self._answer(request)

    def _answer(self, request):
        self.requests.append(request)
        samples = [self._say(seed) for seed in request.seeds]
        self.counts.questions += 1
        self.counts.branches += len(samples)
        self.counts.tokens += sum(len(sample.tokens) for sample in samples)
        self.counts.finished += sum(sample.finished for sample in samples)
        return samples

    def _say(self, seed):
        text = self.LINES[seed % len(self.LINES)]
        tokens = []
        for line in text.splitlines(keepends=True):
            tokens += self.processor.encode(line)
        finished = text != "Unfinished"
        tokens += [self.processor.eos_ids[0]] * finished
        return Sample(np.asarray(tokens, np.int32), -1.0, finished)
