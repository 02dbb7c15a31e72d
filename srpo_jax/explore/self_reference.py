"""A reference path made by the policy itself: the first of some whole paths that is judged safe.

RPO takes its reference paths this way (2410.10858, equation 3: it resamples until the answer is
right, at most 10 times, and else drops the question). SSUI's paths are checked by people and need
none of this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.records import Record

TRIES = 10


def with_reference(
    record: Record,
    pieces: Sequence[np.ndarray],
    processor: Any,
    format: PathFormat,
    opened: bool = False,
) -> Record:
    """The record with the text of `pieces` (from path_formats.tokens.cut_tokens) as its reference
    path. Its steps are as many as the pieces of steps: a reference path is never merged.
    """
    text = processor.decode(np.concatenate(pieces).tolist())
    parsed = format.parse(text, opened=opened, given=len(pieces))
    return dataclasses.replace(record, steps=parsed.steps, reply=parsed.reply)
