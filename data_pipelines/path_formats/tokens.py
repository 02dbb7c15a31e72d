"""A path as token ids: a record's reference path, and a sampled turn cut into its pieces."""

from __future__ import annotations

import bisect
import dataclasses
import os
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.path_formats.statuses import OK
from srpo_jax.data_pipelines.records import Record, RecordError


def tokenize_reference(
    record: Record, processor: Any, format: PathFormat, opened: bool = False
) -> list[np.ndarray]:
    """The reference path as n + 1 int32 arrays: the steps, then the reply with end of turn.

    Each piece is tokenised on its own, so that a prefix of i pieces is the same tokens whatever
    follows it. opened: the prompt already holds the format's opening. `processor` is
    srpo_jax.models.hf.processor.Processor or anything with its encode and eos_ids.
    Raises RecordError for a path that the format cannot write.
    """
    if not record.has_reference:
        raise RecordError(
            f"record {record.id!r} has no reference path: add one, or explore from the policy's "
            "own with --config.explore.reference=missing"
        )
    try:
        format.check(record.steps, record.reply)
    except ValueError as error:
        raise RecordError(f"record {record.id!r}: {error}") from None
    texts = format.pieces(record.steps, record.reply, opened=opened)
    pieces = [list(processor.encode(text, after_text=i > 0)) for i, text in enumerate(texts)]
    pieces[-1].append(processor.eos_ids[0])
    return [np.asarray(piece, np.int32) for piece in pieces]


def as_read_back(record: Record, processor: Any, format: PathFormat) -> Record:
    """The record with the texts of its reference path as their tokens read.

    Some tokenizers write a letter and its accent as one sign (NFC): then that is what a policy is
    trained on, and so what a tree says and a judge reads. processor: as in tokenize_reference, with
    decode. Raises RecordError for a text that comes back as another one.
    """

    def read_back(text: str, name: str) -> str:
        text = format.tidied(text)
        found = processor.decode(processor.encode(text, after_text=True), after_text=True)
        if unicodedata.normalize("NFKC", found) != unicodedata.normalize("NFKC", text):
            at = len(os.path.commonprefix([text, found]))
            shown = [repr(each[max(at - 8, 0) : at + 16]) for each in (text, found)]
            raise RecordError(
                f"record {record.id!r}: {name} cannot be written by this policy's tokenizer: "
                f"{shown[0]} reads back as {shown[1]}; rephrase it"
            )
        return found

    steps = [read_back(step, f"reference.steps[{i}]") for i, step in enumerate(record.steps)]
    reply = read_back(record.reply, "reference.reply")
    return dataclasses.replace(record, steps=tuple(steps), reply=reply)


def cut_tokens(
    tokens: Sequence[int], processor: Any, format: PathFormat, opened: bool = False
) -> list[np.ndarray] | None:
    """The tokens of a whole sampled turn as n + 1 int32 pieces: the steps, then the reply.

    Each piece ends behind its last newline, as the pieces of a record do. None when the turn does
    not follow the format, has no step, or has a token that runs across the border of two pieces.
    processor: anything with decode.
    """
    tokens = [int(token) for token in tokens]
    text = processor.decode(tokens)
    reading = format.read(text, opened=opened)
    if reading.status != OK or not reading.steps or "\r" in text:
        return None
    starts = [at for at, _ in reading.steps[1:]] + [reading.reply_at or 0]
    borders = [0]
    for start in starts:
        border = _border(tokens, processor, text, start)
        if border is None or border <= borders[-1]:
            return None
        borders.append(border)
    borders.append(len(tokens))
    return [np.asarray(tokens[a:b], np.int32) for a, b in zip(borders, borders[1:])]


def _border(tokens: list[int], processor: Any, text: str, start: int) -> int | None:
    """How many tokens end where the spaces in front of `start` begin, or else as little behind
    that as there is; None when a token runs across all of them.
    """
    low = len(text[:start].rstrip(" \t"))
    near = bisect.bisect_left(
        range(len(tokens) + 1), low, key=lambda count: len(processor.decode(tokens[:count]))
    )
    # A character of several tokens decodes to more signs than it is: look around.
    for count in range(max(near - 4, 0), min(near + 8, len(tokens))):
        head = processor.decode(tokens[:count])
        if low <= len(head) <= start and text.startswith(head):
            return count
    return None
