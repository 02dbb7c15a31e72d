"""From trees and answers to the cases that an arbiter is asked about, each content once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.arbiter.contract import reduced
from srpo_jax.arbiter.verdict import Case
from srpo_jax.data_pipelines.records import Record
from srpo_jax.data_pipelines.tree_schema import path_steps, record_of
from srpo_jax.data_pipelines.verdict_store import tree_key, why_not_judged


class Keyed(NamedTuple):
    """A case and the key of its content."""

    key: str
    case: Case


def cases_of_tree(
    tree: Mapping[str, Any], reads: Sequence[str], *, keep_irregular: bool = False
) -> Iterator[Keyed]:
    """The cases of one tree: its reference path, if it has one, then its branches. What is not to
    be judged (unfinished, no reply) is left out; equal ones come as often as they are there.
    """
    record = reduced(record_of(tree), reads)
    images = tuple(image["data"] for image in tree["images"])
    if len(tree["reply"]):
        yield _keyed(tree, record, images, tree["step_texts"], tree["reply_text"], reads)
    for branch in tree["branches"]:
        if not why_not_judged(branch, keep_irregular):
            steps = path_steps(tree, branch)
            yield _keyed(tree, record, images, steps, branch["reply_text"], reads)


def _keyed(
    tree: Mapping[str, Any],
    record: Record,
    images: tuple[bytes, ...],
    steps: Sequence[str],
    reply: str,
    reads: Sequence[str],
) -> Keyed:
    case = Case(record, tuple(steps), reply, True, images)
    return Keyed(tree_key(tree, steps, reply, reads), case)


def once(cases: Iterable[Keyed]) -> dict[str, Case]:
    """The cases by key, in the order of their first occurrence."""
    found: dict[str, Case] = {}
    for key, case in cases:
        found.setdefault(key, case)
    return found
