"""What the engine is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from srpo_jax.models.inputs import EncodedPrompt


class TokenIds(Protocol):
    """What the engine needs to know of a tokenizer; models.hf.processor.Processor has all three.

    decode(ids) is the text of some ids, for stop strings alone.
    """

    eos_ids: tuple[int, ...]
    suppress_ids: tuple[int, ...]

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class SampleRequest:
    """One question and the branches wanted from it.

    prompt: the encoded question. path: int32 [m] tokens to prefill after it (may be empty).
    starts: per branch, how many tokens of the path it keeps. seeds: per branch, 0 <= seed < 2**64.
    name: what an error calls this question. stop: texts that end a branch, besides the engine's.

    Of an engine that leaves it to the requests: temperature and top_p as of Sampling, and the most
    tokens of a branch, max_new_tokens; 0: as many as the engine has room for.
    """

    prompt: EncodedPrompt
    path: np.ndarray
    starts: tuple[int, ...]
    seeds: tuple[int, ...]
    name: str = "question"
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Sample:
    """One branch. tokens: int32 [n], with the end token if that ended it. logp: sum of their
    natural log-probabilities at temperature 1 over the ids that may be sampled, before penalties
    and filters. finished: it ended by an end token or a stop string."""

    tokens: np.ndarray
    logp: float
    finished: bool
