"""What all ways to answer questions share: how, and shards of answers as they are done."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from srpo_jax import __version__
from srpo_jax.config.fields import Config
from srpo_jax.console import Bar, Working, duration
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.errors import UserError
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.prefixes import forced_prefix
from srpo_jax.explore.explorer import branch_seed

Answered = tuple[int, Record, list[dict[str, Any]]]  # number of the question, it, its branches


class Decoding(NamedTuple):
    """How questions are answered. samples: answers to each. prefix: what each begins with."""

    temperature: float
    samples: int
    max_new_tokens: int
    prefix: str
    seed: int

    def seeds(self, record: Record) -> tuple[int, ...]:
        """One for each answer, 64 bits: a function of seed, record and number alone. Greedy
        answers need none.
        """
        if not self.temperature:
            return (0,) * self.samples
        return tuple(branch_seed(self.seed, record.id, "eval", k) for k in range(self.samples))

    def about(self) -> dict[str, Any]:
        """What answers.json says of it; what is as usual is left out, as it was before it was a
        setting.
        """
        found: dict[str, Any] = {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.samples > 1:
            found["samples"] = self.samples
        if self.temperature:
            found["seed"] = self.seed
        if self.prefix:
            found["forced_prefix"] = self.prefix
        return found


def decoding_of(cfg: Config, benchmark: Benchmark | None) -> Decoding:
    """By the config, where it leaves it open by the benchmark's protocol, else one greedy answer.
    Errors: UserError for several answers that would all be the same.
    """
    samples = cfg.eval.samples or (benchmark.samples if benchmark else 1)
    temperature = cfg.eval.temperature
    if temperature < 0:
        temperature = benchmark.temperature if benchmark else 0.0
    if samples > 1 and not temperature:
        raise UserError(
            f"{samples} answers to a question at temperature 0 are the same answer: set "
            "eval.temperature, such as 0.7, or eval.samples=1"
        )
    prefix = forced_prefix(cfg.eval.forced_prefix)
    return Decoding(temperature, samples, cfg.eval.max_new_tokens, prefix, cfg.seed)


class Answerer(abc.ABC):
    """Makes tree records of answers to questions; prints how far it is. name: of the evaluation.
    total: questions in all. about: what answers.json says.
    """

    def __init__(self, cfg: Config, name: str, total: int, about: Mapping[str, Any]):
        self._name, self._total, self._form = name, total, about["path_format"]
        self._provenance = {
            "policy_digest": about["policy_digest"],
            "sampler": about["decoding"],
            "seed": cfg.seed,
            "created_by": f"srpo_jax {__version__}",
        }
        self._done = self._before = 0
        self._bar, self._work = Bar(), Working()

    @abc.abstractmethod
    def answers(self, records: Sequence[Record]) -> Iterator[Answered]:
        """The branches of every question, as it is answered, in any order; the question as it is to
        be kept.
        """

    def skip(self, questions: int) -> None:
        """So many of the questions were answered before."""
        self._done = self._before = questions

    def shards(
        self, parts: Mapping[int, Sequence[Record]]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(number of the part, the tree records of its questions in order) of every part, as it is
        done; the next one is begun before that, so that nothing stands idle."""
        found: dict[int, dict[int, dict[str, Any]]] = {i: {} for i in parts}
        asked = [(i, j) for i, part in parts.items() for j in range(len(part))]
        for number, record, branches in self.answers([parts[i][j] for i, j in asked]):
            i, j = asked[number]
            found[i][j] = make_tree_record(record, (), branches, self._provenance, self._form)
            self._done += 1
            self._tell()
            if len(found[i]) == len(parts[i]):
                trees = found.pop(i)
                yield i, [trees[j] for j in range(len(trees))]

    def _tell(self) -> None:
        if jax.process_index():
            return
        each = self._work.seconds() / (self._done - self._before)
        left = duration(each * (self._total - self._done))
        text = f"eval {self._name}: {self._done}/{self._total} questions, {left} left"
        self._bar.show(text, self._done, self._total)
