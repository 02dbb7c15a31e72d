"""The tree record: everything that training and judging need of one question, and its schema.

A tree record holds the question with its pictures (bytes), its reference path as token ids and as
text, and the branches sampled from it, each read into steps and a reply. Verdicts are not in it:
they lie beside the trees (verdict_store.py), so that trees can be judged again without sampling.
`check_tree` checks a record against the schema, which docs/data.md shows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srpo_jax.data_pipelines.images import read_image_bytes
from srpo_jax.data_pipelines.records import CATEGORIES, Record, RecordError

FORMAT = 2

_TREE = (
    "format",
    "id",
    "question",
    "category",
    "risky",
    "unsafe_reply",
    "source",
    "license",
    "meta",
    "images",
    "path_format",
    "steps",
    "reply",
    "step_texts",
    "reply_text",
    "branches",
    "provenance",
)
_BRANCH = (
    "at",
    "k",
    "parent",
    "tokens",
    "text",
    "finished",
    "logp",
    "status",
    "step_texts",
    "reply_text",
)
_PROVENANCE = {
    "policy_digest": str,
    "sampler": dict,
    "seed": int,
    "created_by": str,
}


class OldFormat(RecordError):
    """Trees that another version of the program wrote, in a format that this one does not read."""


class OtherFormat(ValueError):
    """What check_tree raises for a record of another format than FORMAT."""


def make_tree_record(
    record: Record,
    pieces: Sequence[np.ndarray],
    branches: list[dict],
    provenance: Mapping[str, Any],
    path_format: Mapping[str, Any],
) -> dict[str, Any]:
    """The tree record of one question.

    pieces: the reference path as token ids, a piece a step and one of the reply (tokenize_reference
    gives them); () where nothing leaves it, or the record has none. branches: as docs/data.md says.
    path_format: the settings by which the texts were read.
    """
    images = []
    for name, path in zip(record.images, record.image_paths(), strict=True):
        data = read_image_bytes(path, what=f"record {record.id!r}")
        images.append({"name": name, "sha256": hashlib.sha256(data).hexdigest(), "data": data})
    return {
        "format": FORMAT,
        "id": record.id,
        "question": record.question,
        "category": record.category,
        "risky": record.risky,
        "unsafe_reply": record.unsafe_reply,
        "source": record.source,
        "license": record.license,
        "meta": record.meta,
        "images": images,
        "path_format": dict(path_format),
        "steps": list(pieces[:-1]),
        "reply": pieces[-1] if pieces else [],
        "step_texts": list(record.steps),
        "reply_text": record.reply,
        "branches": branches,
        "provenance": dict(provenance),
    }


def record_of(tree: Mapping[str, Any]) -> Record:
    """The record that a tree was made from; its picture files may be gone, their bytes are in
    tree["images"].
    """
    return Record(
        id=tree["id"],
        images=tuple(image["name"] for image in tree["images"]),
        question=tree["question"],
        steps=tuple(tree["step_texts"]),
        reply=tree["reply_text"],
        category=tree["category"],
        risky=tree["risky"],
        unsafe_reply=tree["unsafe_reply"],
        source=tree["source"],
        license=tree["license"],
        meta=tree["meta"],
    )


def path_steps(tree: Mapping[str, Any], branch: Mapping[str, Any]) -> list[str]:
    """The steps of the whole path that a branch is the end of: those before it, then its own."""
    return [*tree["step_texts"][: branch["at"]], *branch["step_texts"]]


def check_tree(tree: Any) -> None:
    """Raise ValueError with a short reason unless `tree` (as unpacked) follows the schema."""
    if not isinstance(tree, dict):
        raise ValueError("a tree record must be a map")
    if tree.get("format") != FORMAT:
        raise OtherFormat(
            f"format is {tree.get('format')!r}, this version reads {FORMAT}; "
            "sample the trees again with `srpo explore` in another workdir"
        )
    _keys(tree, _TREE, "the tree")
    for name in ("id", "question"):
        if not _is(tree[name], str, name).strip():
            raise ValueError(f"{name} is empty")
    for name in ("source", "license", "reply_text"):
        _is(tree[name], str, name)
    if tree["unsafe_reply"] is not None:
        _is(tree["unsafe_reply"], str, "unsafe_reply")
    if tree["category"] is not None and tree["category"] not in CATEGORIES:
        raise ValueError(f"category {tree['category']!r} is not one of the nine")
    if tree["risky"] is not None:
        _is(tree["risky"], bool, "risky")
    for name in ("meta", "path_format"):
        _is(tree[name], dict, name)
    for i, image in enumerate(_is(tree["images"], list, "images")):
        _check_image(image, f"images[{i}]")
    steps = _check_reference(tree)
    written = not tree["steps"] and tree["reply"] == []  # nothing here was ever tokens
    seen = set()
    for i, branch in enumerate(_is(tree["branches"], list, "branches")):
        _check_branch(branch, f"branches[{i}]", steps, written)
        if (key := (branch["at"], branch["k"])) in seen:
            raise ValueError(f"branches[{i}]: at {key[0]}, k {key[1]} is there twice")
        seen.add(key)
    provenance = _is(tree["provenance"], dict, "provenance")
    for name, kind in _PROVENANCE.items():
        if name not in provenance:
            raise ValueError(f"provenance.{name} is missing")
        _is(provenance[name], kind, f"provenance.{name}")


def _check_reference(tree: dict[str, Any]) -> int:
    """Checks the reference path, which may be missing as a whole, or be a reply without a step.
    Returns its number of steps.
    """
    steps = _is(tree["steps"], list, "steps")
    texts = _texts(tree["step_texts"], "step_texts")
    if not steps and tree["reply"] == []:  # an answer's record, or one without a reference path
        return 0
    if not tree["reply_text"].strip():
        raise ValueError("reply_text is empty")
    for i, step in enumerate(steps):
        _tokens(step, f"steps[{i}]")
    _tokens(tree["reply"], "reply")
    if len(texts) != len(steps):
        raise ValueError(f"{len(texts)} step_texts for {len(steps)} steps")
    return len(steps)


def _check_image(image: Any, name: str) -> None:
    _keys(_is(image, dict, name), ("name", "sha256", "data"), name)
    _is(image["name"], str, f"{name}.name")
    if hashlib.sha256(_is(image["data"], bytes, f"{name}.data")).hexdigest() != image["sha256"]:
        raise ValueError(f"{name}: the bytes do not match their sha256")


def _check_branch(branch: Any, name: str, num_steps: int, written: bool) -> None:
    """written: a branch may be the text of a model that gave no tokens, and no logp."""
    _keys(_is(branch, dict, name), _BRANCH, name)
    at, k = _is(branch["at"], int, f"{name}.at"), _is(branch["k"], int, f"{name}.k")
    if not 0 <= at <= num_steps:
        raise ValueError(f"{name}.at is {at}, a path of {num_steps} steps has 0..{num_steps}")
    if k < 0:
        raise ValueError(f"{name}.k is negative")
    if branch["parent"] is not None:
        raise ValueError(f"{name}.parent is {branch['parent']!r}; this version knows only null")
    if not (written and branch["tokens"] == [] and branch["logp"] is None):
        _tokens(branch["tokens"], f"{name}.tokens")
    _is(branch["text"], str, f"{name}.text")
    _is(branch["status"], str, f"{name}.status")
    _is(branch["finished"], bool, f"{name}.finished")
    if branch["logp"] is not None and not math.isfinite(_is(branch["logp"], float, f"{name}.logp")):
        raise ValueError(f"{name}.logp is not finite")
    _texts(branch["step_texts"], f"{name}.step_texts")
    if branch["reply_text"] is not None:
        _is(branch["reply_text"], str, f"{name}.reply_text")


def _texts(value: Any, name: str) -> list[str]:
    for i, text in enumerate(_is(value, list, name)):
        _is(text, str, f"{name}[{i}]")
    return value


def _tokens(value: Any, name: str) -> None:
    if not _is(value, list, name):
        raise ValueError(f"{name} is empty")
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) >= 2**31:
        wrong = next(t for t in value if type(t) is not int or not 0 <= t < 2**31)
        raise ValueError(f"{name} holds {wrong!r}, which is no token id")


def _is(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:  # not isinstance: True is no integer here
        raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _keys(value: dict, keys: tuple[str, ...], name: str) -> None:
    for key in keys:
        if key not in value:
            raise ValueError(f"{name}: field {key!r} is missing")
    unknown = sorted(str(key) for key in set(value) - set(keys))
    if unknown:
        raise ValueError(f"{name}: unknown field {unknown[0]!r}")
