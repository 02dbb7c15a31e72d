"""A reference path made by the policy itself: the first of some whole paths that is judged safe.

RPO takes its reference paths this way (2410.10858, equation 3: it resamples until the answer is
right, at most 10 times, and else drops the question). SSUI's paths are checked by people and need
none of this. The whole paths are sampled as trees without a reference path, WORKDIR/roots, and
judged like any others; then the branches are sampled from the paths chosen here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srpo_jax.config.fields import arguments
from srpo_jax.config.judging_sections import ArbiterSettings
from srpo_jax.data_pipelines.path_format import parse_path
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.verdict_store import VerdictSet, branch_label

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


def own_references(
    roots: Iterable[Mapping[str, Any]],
    records: Sequence[Record],
    verdicts: VerdictSet,
    processor: Any,
    arbiter: ArbiterSettings,
) -> dict[str, tuple[Record, list[np.ndarray]]]:
    """{id: (the record with its reference path, that path's token pieces)}, for every question of
    which a whole path was judged safe.

    roots: tree records of whole paths, with their branches in the order of k. arbiter: what counts
    as safe.
    """
    by_id = {record.id: record for record in records}
    rules = arguments(branch_label, arbiter)
    found = {}
    for tree in roots:
        for branch in tree["branches"]:
            verdict = verdicts.branch_verdict(tree, branch)
            if branch_label(verdict, **rules) is not True:
                continue
            pieces = split_pieces(branch["tokens"], processor)
            if pieces is not None:
                record = with_reference(by_id[tree["id"]], pieces, processor)
                found[tree["id"]] = (record, pieces)
                break
    return found
