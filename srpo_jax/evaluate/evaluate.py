"""Evaluation: the policy answers held-out questions greedily.

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
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from srpo_jax import __version__
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.console import Bar, Working, duration, say
from srpo_jax.data_pipelines.answer_store import STEM, answers_folder, finish_answers, read_answers
from srpo_jax.data_pipelines.path_formats.statuses import OK, count_statuses, unreadable
from srpo_jax.data_pipelines.prompt import check_disjoint
from srpo_jax.data_pipelines.records import Record, read_records, records_digest
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.data_pipelines.tree_store import read_shard, shard_done, shard_path, write_shard
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.files import check_writable
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import Policy, choose_questions, load_policy
from srpo_jax.inference.sampling_mesh import Shape
from srpo_jax.owners import Owner

SHARD_QUESTIONS = 256  # answers in a shard: what an interruption can cost


def evaluate(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    name: str,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
) -> pathlib.Path:
    """Answer the questions of cfg.eval.split, or finish that. Returns the folder WORKDIR/eval/NAME.

    name: an evaluation of that name is replaced when the new one is complete. model_dir: the
    policy, instead of cfg.model.path. params: use these instead of that folder's weights. Raises
    UserError for bad records or settings. Several processes that have met (distributed_session)
    make the same call: they answer on one mesh, and process 0 writes. More than half of the answers
    without a reply that can be read is a warning on stderr.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py")
        srpo_jax.evaluate(config, "runs/mini", "after", model_dir="runs/mini/export")
        scores = srpo_jax.judge(config, "runs/mini", answers="after")
        print(scores["safety_rate"], scores["path_safety_rate"])
    """
    cfg = as_config(cfg)
    split = cfg.eval.split
    source = records_path(cfg.data.records(split), workdir, field=f"data.{split}_records")
    known = read_records(source)
    records = choose_questions(known, cfg.eval.num_questions, seed=cfg.seed)
    folder = pathlib.Path(workdir) / "eval" / name
    writes = jax.process_index() == 0  # of several processes, which answer together
    again = "wait for it or stop it, or give another --name"
    with contextlib.ExitStack() as held:
        owner = None
        if writes:
            check_writable(folder)
            owner = held.enter_context(Owner(folder / ".owner", str(folder), "answered", again))
        policy = load_policy(cfg, model_dir=model_dir, params=params)
        check_disjoint(policy.asking.encoder.prompt, known, f"data.{split}_records")
        about = {
            "policy_digest": policy.digest,
            "prompt_digest": policy.prompt_digest,
            "decoding": {
                "temperature": 0.0,
                "max_new_tokens": cfg.eval.max_new_tokens,
                "dtype": cfg.model.dtype,
                "split": split,
            },
            "path_format": policy.path_format,
            "records": records_digest(records),
        }
        place = answers_folder(folder, about)
        count = -(-len(records) // SHARD_QUESTIONS)
        paths = [shard_path(place, i, count, f"{STEM}{name}") for i in range(count)]
        todo = as_first_says(lambda: [i for i, path in enumerate(paths) if not shard_done(path)])
        if todo:
            answer = Answerer(cfg, policy, records, name, about)
            answer.skip(len(records) - sum(len(_part(records, i)) for i in todo))
            for i, trees in answer.shards({i: _part(records, i) for i in todo}):
                if owner is not None:
                    owner.check()
                    write_shard(paths[i], trees)
        if writes:
            finish_answers(folder, about)
    if writes:
        tell_statuses(folder, name)
    return folder


def _part(records: Sequence[Record], index: int) -> Sequence[Record]:
    return records[index * SHARD_QUESTIONS : (index + 1) * SHARD_QUESTIONS]


class Answerer:
    """Makes tree records of one greedy answer to each question; prints how far it is.

    records: all that may come; the engine is shaped for them.
    """

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        records: Sequence[Record],
        name: str,
        about: dict[str, Any],
    ):
        self._policy, self._name, self._total = policy, name, len(records)
        self._provenance = {
            "policy_digest": policy.digest,
            "sampler": about["decoding"],
            "seed": cfg.seed,
            "created_by": f"srpo_jax {__version__}",
        }
        tokens, patches = policy.budgets(records, [0] * len(records))
        shape = Shape(tokens, 1, cfg.eval.max_new_tokens, patches)
        self._engine = Engine(
            policy.model,
            policy.params,
            policy.processor,
            rows=policy.rows(cfg.eval.batch, len(records), shape),
            branches=1,
            prompt_tokens=tokens,
            patches=patches,
            max_new_tokens=cfg.eval.max_new_tokens,
            sampling=Sampling(temperature=0.0),
            mesh=policy.mesh,
        )
        self._done = self._before = 0
        self._bar, self._work = Bar(), Working()

    def skip(self, questions: int) -> None:
        """So many of the questions were answered before."""
        self._done = self._before = questions

    def shards(
        self, parts: Mapping[int, Sequence[Record]]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(number of the part, the tree records of its questions in order) of every part, as it is
        done; the next one is begun before that, so that no row stands idle."""
        found: dict[int, dict[int, dict[str, Any]]] = {i: {} for i in parts}
        asked = [(i, j) for i, part in parts.items() for j in range(len(part))]

        def requests() -> Iterator[SampleRequest]:
            for i, j in asked:
                record = parts[i][j]
                prompt = self._policy.encode(record)
                yield SampleRequest(
                    prompt, np.zeros(0, np.int32), (0,), (0,), f"record {record.id!r}"
                )

        for number, (sample,) in self._engine.stream(requests()):
            i, j = asked[number]
            found[i][j] = self._tree(parts[i][j], sample)
            self._done += 1
            self._tell()
            if len(found[i]) == len(parts[i]):
                trees = found.pop(i)
                yield i, [trees[j] for j in range(len(trees))]

    def _tree(self, record: Record, sample: Any) -> dict[str, Any]:
        branch = self._policy.branch((), 0, 0, sample.tokens.tolist(), sample)
        form = self._policy.path_format
        return make_tree_record(record, (), [branch], self._provenance, form)

    def _tell(self) -> None:
        if jax.process_index():
            return
        each = self._work.seconds() / (self._done - self._before)
        left = duration(each * (self._total - self._done))
        text = f"eval {self._name}: {self._done}/{self._total} questions, {left} left"
        self._bar.show(text, self._done, self._total)


def tell_statuses(folder: pathlib.Path, name: str) -> None:
    """Prints how the answers could be read; a warning when more than half of them could not."""
    found: Counter[str] = Counter()
    example = kind = ""
    for shard in read_answers(folder)[1]:
        for tree in read_shard(shard):
            branch = tree["branches"][0]
            found[branch["status"]] += 1
            if branch["status"] != OK and not example:
                example = branch["text"]
            kind = tree["path_format"].get("kind", "")
    counts = count_statuses(found)
    told = ", ".join(f"{status} {count}" for status, count in counts.items())
    say(f"eval {name}: read as {told}")
    if message := unreadable(counts, found.total(), example, kind, least=1):
        say(f"eval {name}: warning: the scores say little: {message}", to=sys.stderr)
