"""The schema of one reasoning-tree record, as a checker. Data that fails it is never trained on."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from srpo_jax.data_pipelines.records import CATEGORIES

FORMAT = 1
VERDICTS = ("SAFE", "UNSAFE", "ERROR")

_TREE = (
    "format",
    "id",
    "question",
    "category",
    "risky",
    "images",
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
    "tokens",
    "text",
    "finished",
    "logp",
    "reply_verdict",
    "path_verdict",
    "step_verdicts",
    "effective",
    "detail",
)
_PROVENANCE = {
    "policy_digest": str,
    "sampler": dict,
    "seed": int,
    "arbiter": str,
    "created_by": str,
}


def check_tree(tree: Any) -> None:
    """Raise ValueError with a short reason unless `tree` (as unpacked) follows the schema."""
    if not isinstance(tree, dict):
        raise ValueError("a tree record must be a map")
    if tree.get("format") != FORMAT:
        raise ValueError(f"format is {tree.get('format')!r}, this version reads {FORMAT}")
    _keys(tree, _TREE, "the tree")
    for name in ("id", "question", "reply_text"):
        _is(tree[name], str, name)
        if not tree[name].strip():
            raise ValueError(f"{name} is empty")
    if tree["category"] is not None and tree["category"] not in CATEGORIES:
        raise ValueError(f"category {tree['category']!r} is not one of the nine")
    if tree["risky"] is not None:
        _is(tree["risky"], bool, "risky")
    for i, image in enumerate(_is(tree["images"], list, "images")):
        _check_image(image, f"images[{i}]")
    steps = _is(tree["steps"], list, "steps")
    if not steps:
        raise ValueError("steps is empty: a path needs at least one step")
    for i, step in enumerate(steps):
        _tokens(step, f"steps[{i}]")
    _tokens(tree["reply"], "reply")
    texts = _is(tree["step_texts"], list, "step_texts")
    if len(texts) != len(steps):
        raise ValueError(f"{len(texts)} step_texts for {len(steps)} steps")
    for i, text in enumerate(texts):
        _is(text, str, f"step_texts[{i}]")
    seen = set()
    for i, branch in enumerate(_is(tree["branches"], list, "branches")):
        _check_branch(branch, f"branches[{i}]", len(steps))
        if (key := (branch["at"], branch["k"])) in seen:
            raise ValueError(f"branches[{i}]: at {key[0]}, k {key[1]} is there twice")
        seen.add(key)
    provenance = _is(tree["provenance"], dict, "provenance")
    for name, kind in _PROVENANCE.items():
        if name not in provenance:
            raise ValueError(f"provenance.{name} is missing")
        _is(provenance[name], kind, f"provenance.{name}")


def _check_image(image: Any, name: str) -> None:
    _keys(_is(image, dict, name), ("name", "sha256", "data"), name)
    _is(image["name"], str, f"{name}.name")
    if hashlib.sha256(_is(image["data"], bytes, f"{name}.data")).hexdigest() != image["sha256"]:
        raise ValueError(f"{name}: the bytes do not match their sha256")


def _check_branch(branch: Any, name: str, num_steps: int) -> None:
    _keys(_is(branch, dict, name), _BRANCH, name)
    at, k = _is(branch["at"], int, f"{name}.at"), _is(branch["k"], int, f"{name}.k")
    if not 0 <= at < num_steps:
        raise ValueError(f"{name}.at is {at}, a path of {num_steps} steps has 0..{num_steps - 1}")
    if k < 0:
        raise ValueError(f"{name}.k is negative")
    _tokens(branch["tokens"], f"{name}.tokens")
    _is(branch["text"], str, f"{name}.text")
    _is(branch["detail"], str, f"{name}.detail")
    _is(branch["finished"], bool, f"{name}.finished")
    if not math.isfinite(_is(branch["logp"], float, f"{name}.logp")):
        raise ValueError(f"{name}.logp is not finite")
    if branch["effective"] is not None:
        _is(branch["effective"], bool, f"{name}.effective")
    steps = _is(branch["step_verdicts"], list, f"{name}.step_verdicts")
    for verdict in [branch["reply_verdict"], branch["path_verdict"], *steps]:
        if verdict not in VERDICTS:
            raise ValueError(f"{name}: verdict {verdict!r} is not one of {', '.join(VERDICTS)}")


def _tokens(value: Any, name: str) -> None:
    if not _is(value, list, name):
        raise ValueError(f"{name} is empty")
    for token in value:
        if type(token) is not int or not 0 <= token < 2**31:
            raise ValueError(f"{name} holds {token!r}, which is no token id")


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
