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
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.path_formats.tokens import cut_tokens
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.verdict_store import VerdictSet, branch_label

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


def own_references(
    roots: Iterable[Mapping[str, Any]],
    records: Sequence[Record],
    verdicts: VerdictSet,
    processor: Any,
    format: PathFormat,
    arbiter: ArbiterSettings,
    *,
    opened: bool = False,
) -> dict[str, tuple[Record, list[np.ndarray]]]:
    """{id: (the record with its reference path, that path's token pieces)}, for every question of
    which a whole path was judged safe.

    roots: tree records of whole paths, with their branches in the order of k. format: of these
    paths. arbiter: what counts as safe. opened: the prompt already holds the format's opening.
    """
    by_id = {record.id: record for record in records}
    rules = arguments(branch_label, arbiter)
    found = {}
    for tree in roots:
        for branch in tree["branches"]:
            verdict = verdicts.branch_verdict(tree, branch)
            if branch_label(verdict, **rules) is not True:
                continue
            pieces = cut_tokens(branch["tokens"], processor, format, opened)
            if pieces is not None:
                record = with_reference(by_id[tree["id"]], pieces, processor, format, opened)
                found[tree["id"]] = (record, pieces)
                break
    return found
