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

from srpo_jax.data_pipelines.path_format import parse_path
from srpo_jax.data_pipelines.records import Record

TRIES = 10


def split_pieces(tokens: Sequence[int], processor: Any) -> list[np.ndarray] | None:
    """Cuts generated tokens after the newline of each step: into n pieces of a step each, and one
    of the reply with the end token.

    Returns None when they cannot be cut so: there is no step, no reply, or a token that runs across
    the end of a line. processor: anything with decode.
    """
    steps, reply = parse_path(processor.decode(list(tokens)))
    if not steps or not reply or not reply.strip():
        return None
    pieces: list[list[int]] = []
    current: list[int] = []
    for i, token in enumerate(tokens):
        current.append(int(token))
        text = processor.decode([int(token)])
        if "\n" in text.rstrip("\n"):
            return None
        if text.endswith("\n") and parse_path(processor.decode(current))[0]:
            # A blank line has no step of its own: it stays at the head of the next piece.
            pieces.append(current)
            current = []
            if len(pieces) == len(steps):
                pieces.append([int(t) for t in tokens[i + 1 :]])
                break
    whole = [parse_path(processor.decode(piece)) for piece in pieces]
    if whole != [((step,), None) for step in steps] + [((), reply)]:
        return None
    return [np.asarray(piece, np.int32) for piece in pieces]


def with_reference(record: Record, pieces: Sequence[np.ndarray], processor: Any) -> Record:
    """The record with the text of `pieces` (from split_pieces) as its reference path."""
    tokens = np.concatenate(pieces).tolist()
    steps, reply = parse_path(processor.decode(tokens))
    return dataclasses.replace(record, steps=steps, reply=reply)
