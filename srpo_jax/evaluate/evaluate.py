"""Evaluation: the policy answers held-out questions, or those of a benchmark.

    records -> WORKDIR/eval/NAME/answers-*  (data_pipelines/answer_store.py)

`srpo judge --answers=NAME` then judges path and reply apart and writes the scores (scores.py).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.console import say
from srpo_jax.data_pipelines.answer_store import STEM, answers_folder, finish_answers, read_answers
from srpo_jax.data_pipelines.path_formats.statuses import OK, count_statuses, unreadable
from srpo_jax.data_pipelines.prompt import Prompt, check_disjoint
from srpo_jax.data_pipelines.records import Record, read_records, records_digest
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_store import read_shard, shard_done, shard_path, write_shard
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.errors import UserError
from srpo_jax.evaluate.answering import Answered, Answerer, Decoding, decoding_of
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.benchmarks.registry import FIELD, find_benchmark
from srpo_jax.evaluate.choosing import Choosing
from srpo_jax.evaluate.served import ServedAnswerer, ServedPolicy, Server
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import MOST_SLOTS, Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import Policy, choose_questions, load_policy
from srpo_jax.inference.sampling_mesh import Shape
from srpo_jax.owners import Owner
from srpo_jax.places import check_place
from srpo_jax.runs.looks import tell_look

SHARD_QUESTIONS = 256  # answers in a shard: what an interruption can cost
DATA = "data"  # folder of a workdir: what of a benchmark's data had no file of its own


def evaluate(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    name: str,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
    policy: Policy | None = None,
    benchmark: str = "",
    data: str | os.PathLike = "",
    server: Server | None = None,
) -> pathlib.Path:
    """Answer the questions of cfg.eval.split, or finish that. Returns the folder WORKDIR/eval/NAME.

    name: an evaluation of that name is replaced when the new one is complete. model_dir: the
    policy, instead of cfg.model.path. params: use these instead of that folder's weights. policy:
    one that is loaded already. benchmark: answer its questions instead, those in the folder `data`
    (a name of evaluate/benchmarks/registry.py, or module:Class). server: a model behind a server
    answers. Raises UserError for bad records or settings. Several processes that have met
    (distributed_session) make the same call: they answer on one mesh, and process 0 writes. More
    than half of the answers without a reply that can be read is a warning on stderr. A look at test
    questions, which those of a benchmark are, is counted in the workdir (runs/looks.py).

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py")
        srpo_jax.evaluate(config, "runs/mini", "after", model_dir="runs/mini/export")
        scores = srpo_jax.judge(config, "runs/mini", answers="after")
        print(scores["safety_rate"], scores["path_safety_rate"])
    """
    cfg = as_config(cfg)
    task = make_task(
        cfg, pathlib.Path(workdir), name, benchmark, data, count=cfg.eval.num_questions
    )
    return answer(task, model_dir=model_dir, params=params, policy=policy, server=server)


def answer(
    task: Task,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
    policy: Policy | None = None,
    server: Server | None = None,
) -> pathlib.Path:
    """`evaluate` for what make_task has made ready."""
    cfg, workdir, name, records = task.cfg, task.workdir, task.name, task.records
    writes = jax.process_index() == 0  # of several processes, which answer together
    again = "wait for it or stop it, or give another --name"
    folder = workdir / "eval" / name
    with contextlib.ExitStack() as held:
        owner = None
        if writes:
            check_place(folder)
            owner = held.enter_context(Owner(folder / ".owner", str(folder), "answered", again))
        if server is not None:
            whose = ServedPolicy(cfg, server, records)
        else:
            whose = policy or load_policy(cfg, model_dir=model_dir, params=params)
        task.check_prompt(whose.prompt)
        about = task.about(whose)
        place = answers_folder(folder, about)
        count = -(-len(records) // SHARD_QUESTIONS)
        paths = [shard_path(place, i, count, f"{STEM}{name}") for i in range(count)]
        todo = as_first_says(lambda: [i for i, path in enumerate(paths) if not shard_done(path)])
        if todo:
            answerer = task.answerer(whose, about)
            answerer.skip(len(records) - sum(len(_part(records, i)) for i in todo))
            for i, trees in answerer.shards({i: _part(records, i) for i in todo}):
                if owner is not None:
                    owner.check()
                    write_shard(paths[i], trees)
        if writes:
            named = server.model if server else os.fspath(model_dir or task.cfg.model.path)
            finish_answers(folder, about, pathlib.PurePath(named).name)
    if writes:
        if not task.choosing:  # where options are chosen, nothing is to be read
            tell_statuses(folder, name)
        tell_look(workdir, name, about)
    return folder


class Task(NamedTuple):
    """What is answered, and how. spec: what the benchmark was named by, "" without one. known: all
    questions that there are, of which `records` are answered; source: what they are called.
    """

    cfg: Config
    workdir: pathlib.Path
    name: str
    records: Sequence[Record]
    decoding: Decoding
    benchmark: Benchmark | None
    spec: str
    known: Sequence[Record]
    source: str

    def check_prompt(self, prompt: Prompt) -> None:
        """Errors: UserError for a demonstration that is one of the questions."""
        check_disjoint(prompt, self.known, self.source)

    def check_served(self) -> None:
        """Errors: UserError for what no served model can answer."""
        if self.choosing:
            raise UserError(f"{self.choosing.name} needs log-probabilities: give --model")

    @property
    def choosing(self) -> Benchmark | None:
        """The benchmark, if its questions are answered by choosing among options."""
        has_options = self.benchmark is not None and self.benchmark.choices(self.records[0])
        return self.benchmark if has_options else None

    def about(self, whose: Policy | ServedPolicy) -> dict[str, Any]:
        """What decides the answers, as answers.json has it."""
        cfg, benchmark = self.cfg, self.benchmark
        how = {"options": "log-likelihood"} if self.choosing else self.decoding.about()
        served = whose.server.model if isinstance(whose, ServedPolicy) else ""
        return {
            "policy_digest": whose.digest,
            "prompt_digest": whose.prompt_digest,
            "decoding": {
                **how,
                **({} if served else {"dtype": cfg.model.dtype}),
                "split": benchmark.name if benchmark else cfg.eval.split,
            },
            "path_format": whose.path_format,
            "records": records_digest(self.records),
            **({"benchmark": self.spec} if benchmark else {}),
            **({"served_model": served} if served else {}),
        }

    def answerer(self, whose: Policy | ServedPolicy, about: Mapping[str, Any]) -> Answerer:
        """Who answers. Errors: UserError for what this policy cannot do."""
        common = self.name, len(self.records), about
        if isinstance(whose, ServedPolicy):
            self.check_served()
            return ServedAnswerer(self.cfg, whose, *common, self.decoding, self.workdir)
        if self.choosing:
            return Choosing(self.cfg, whose, *common, self.choosing)
        return Sampled(self.cfg, whose, *common, self.decoding, self.records)


def make_task(
    cfg: Config,
    workdir: pathlib.Path,
    name: str,
    spec: str = "",
    data: str | os.PathLike = "",
    *,
    count: int,
    fields: tuple[str, str] = (FIELD, "--data"),
) -> Task:
    """The task of answering `count` questions (0: all), of the benchmark `spec` in the folder
    `data`, or of cfg.eval.split. fields: what spec and data are given by. Errors: UserError for all
    that is wrong with settings and data.
    """
    benchmark = find_benchmark(spec, fields[0]) if spec else None
    decoding = decoding_of(cfg, benchmark)
    known, source = _questions(cfg, workdir, benchmark, data, fields[1])
    records = choose_questions(known, count, seed=cfg.seed)
    return Task(cfg, workdir, name, records, decoding, benchmark, spec, known, source)


def _questions(
    cfg: Config,
    workdir: pathlib.Path,
    benchmark: Benchmark | None,
    data: str | os.PathLike,
    field: str,
) -> tuple[list[Record], str]:
    """(all questions that there are, what they are called in messages)."""
    if benchmark is not None:
        place = data_of(benchmark, data, field)
        records = benchmark.records(place, workdir / DATA / benchmark.name)
        return records, f"the data of {benchmark.name}"
    source = f"data.{cfg.eval.split}_records"
    path = records_path(cfg.data.records(cfg.eval.split), workdir, field=source)
    return read_records(path), source


def data_of(benchmark: Benchmark, data: str | os.PathLike, field: str = "--data") -> pathlib.Path:
    """The folder of a benchmark's data: the user's, else what comes with it. Errors: UserError."""
    place = pathlib.Path(data) if os.fspath(data) else benchmark.own_data
    if place is None:
        raise UserError(
            f"{field}=DIR is missing: {benchmark.name} is to be had from {benchmark.source}; DIR "
            f"holds {benchmark.layout}"
        )
    if not place.exists():
        raise UserError(
            f"{field}: {place} does not exist; for {benchmark.name} it holds {benchmark.layout}, "
            f"to be had from {benchmark.source}"
        )
    return place


def _part(records: Sequence[Record], index: int) -> Sequence[Record]:
    return records[index * SHARD_QUESTIONS : (index + 1) * SHARD_QUESTIONS]


class Sampled(Answerer):
    """Answers that our own engine samples. records: all that may come; it is shaped for them."""

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        name: str,
        total: int,
        about: Mapping[str, Any],
        decoding: Decoding,
        records: Sequence[Record],
    ):
        super().__init__(cfg, name, total, about)
        self._policy, self._decoding = policy, decoding
        self._forced = policy.forced_start(decoding.prefix)
        room = policy.budgets(records, [len(self._forced)] * len(records))
        self._engine = make_engine(cfg, policy, decoding, room, len(records))

    def answers(self, records: Sequence[Record]) -> Iterator[Answered]:
        """See Answerer.answers."""

        def requests() -> Iterator[SampleRequest]:
            for record in records:
                seeds = self._decoding.seeds(record)
                yield SampleRequest(
                    self._policy.encode(record),
                    np.asarray(self._forced, np.int32),
                    (len(self._forced),) * len(seeds),
                    seeds,
                    f"record {record.id!r}",
                )

        forced = self._forced.tolist()
        for number, samples in self._engine.stream(requests()):
            branches = [
                self._policy.branch((), 0, k, [*forced, *sample.tokens.tolist()], sample)
                for k, sample in enumerate(samples)
            ]
            yield number, records[number], branches


def make_engine(
    cfg: Config, policy: Policy, decoding: Decoding, room: tuple[int, int], most: int
) -> Engine:
    """The engine that answers at most so many questions. room: tokens and patches of each, as
    policy.budgets gives them.
    """
    tokens, patches = room
    slots = min(decoding.samples, MOST_SLOTS)
    shape = Shape(tokens, slots, decoding.max_new_tokens, patches)
    return Engine(
        policy.model,
        policy.params,
        policy.processor,
        rows=policy.rows(cfg.eval.batch, most, shape),
        slots=slots,
        branches=decoding.samples,
        prompt_tokens=tokens,
        patches=patches,
        max_new_tokens=decoding.max_new_tokens,
        sampling=Sampling(temperature=decoding.temperature),
        mesh=policy.mesh,
    )


def tell_statuses(folder: pathlib.Path, name: str) -> None:
    """Prints how the answers could be read; a warning when more than half of them could not."""
    found: Counter[str] = Counter()
    example = kind = ""
    for shard in read_answers(folder)[1]:
        for tree in read_shard(shard):
            for branch in tree["branches"]:
                found[branch["status"]] += 1
                if branch["status"] != OK and not example:
                    example = branch["text"]
            kind = tree["path_format"].get("kind", "")
    counts = count_statuses(found)
    told = ", ".join(f"{status} {count}" for status, count in counts.items())
    say(f"eval {name}: read as {told}")
    if message := unreadable(counts, found.total(), example, kind, least=1):
        say(f"eval {name}: warning: the scores say little: {message}", to=sys.stderr)
