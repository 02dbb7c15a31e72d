"""Questions with options: the policy takes the likeliest one, and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.images import load_record_images
from srpo_jax.data_pipelines.path_formats.statuses import NO_THINKING
from srpo_jax.data_pipelines.prompt import BARE
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.evaluate.answering import Answered, Answerer
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.inference.choice_scores import Choices, ChoiceScorer
from srpo_jax.inference.policy import Policy, rows_over
from srpo_jax.models.hf.prompt_encoder import PromptEncoder

BATCH = 4  # questions at once, unless eval.batch says otherwise


class Choosing(Answerer):
    """Of every question the option whose text is the likeliest directly behind the bare question:
    whatever the config tells the policy is left out, and so is its path. Of equal ones the first.
    The log-probabilities of all are kept, in meta.option_logps.
    """

    def __init__(
        self,
        cfg: Config,
        policy: Policy,
        name: str,
        total: int,
        about: Mapping[str, Any],
        benchmark: Benchmark,
    ):
        super().__init__(cfg, name, total, about)
        check_alone(policy, benchmark)
        self._policy, self._benchmark = policy, benchmark
        self._bare = PromptEncoder(policy.processor, BARE)
        self._batch = rows_over(policy.mesh, min(cfg.eval.batch or BATCH, total))
        self._scorer = ChoiceScorer(
            policy.model, policy.params, batch=self._batch, mesh=policy.mesh
        )

    def answers(self, records: Sequence[Record]) -> Iterator[Answered]:
        """See Answerer.answers."""
        for start in range(0, len(records), self._batch):
            part = records[start : start + self._batch]
            asked = [self._choices(record) for record in part]
            for i, (record, scores) in enumerate(zip(part, self._scorer(asked), strict=True)):
                yield start + i, *self._answer(record, scores)

    def _choices(self, record: Record) -> Choices:
        prompt = self._bare.encode(record.question, load_record_images(record))
        encode = self._policy.processor.encode
        texts = tuple(
            np.asarray(encode(text), np.int32) for text in self._benchmark.choices(record)
        )
        return Choices(prompt, np.zeros(0, np.int32), texts)

    def _answer(self, record: Record, scores: np.ndarray) -> tuple[Record, list[dict[str, Any]]]:
        options = self._benchmark.choices(record)
        best = int(np.argmax(scores))
        logps = dict(zip(options, map(float, scores), strict=True))
        kept = Record(**{**vars(record), "meta": {**record.meta, "option_logps": logps}})
        branch = {
            "at": 0,
            "k": 0,
            "parent": None,
            "tokens": [int(token) for token in self._policy.processor.encode(options[best])],
            "text": options[best],
            "finished": True,
            "logp": logps[options[best]],
            "status": NO_THINKING,
            "step_texts": [],
            "reply_text": options[best],
        }
        return kept, [branch]


def check_alone(policy: Policy, benchmark: Benchmark) -> None:
    """Errors: UserError when several processes would score the options of a benchmark."""
    if policy.together:
        raise UserError(
            f"{benchmark.name} scores options, which several processes on one mesh do not do "
            "yet: run it in one process"
        )
