"""Answers of a policy to the questions of an evaluation, on disk: WORKDIR/eval/NAME.

An answer is a tree record with one branch (tree_schema.py): question, pictures, and what the policy
wrote. They lie in shards in the folder answers-RUN; `answers.json`, written last, names that folder
and says whose answers they are. So an evaluation is replaced when the new one is complete.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.data_pipelines.tree_store import shard_done, shards_of
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json
from srpo_jax.keepers import remove, remove_folder

FILE = "answers.json"
STEM = "answers-"  # what the names of its shards begin with, and of the verdicts on them


def answers_folder(folder: pathlib.Path, about: Mapping[str, Any]) -> pathlib.Path:
    """Where the shards of this evaluation lie. about: all that decides the answers."""
    text = json.dumps(dict(about), sort_keys=True)
    return folder / f"answers-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def finish_answers(folder: pathlib.Path, about: Mapping[str, Any], model: str = "") -> None:
    """Says that the answers are complete, and removes an earlier evaluation and its scores. model:
    the policy's name for people, which decides nothing.
    """
    current = answers_folder(folder, about)
    if _named(folder) != current.name:
        for name in ("scores.json", "generations.jsonl"):
            remove(folder / name)
        told = {"model": model} if model else {}
        write_json(folder / FILE, {**about, **told, "folder": current.name})
    for other in folder.glob("answers-*"):
        if other != current:
            remove_folder(other)


def read_answers(folder: pathlib.Path) -> tuple[dict[str, Any], list[pathlib.Path]]:
    """(what answers.json says, the shards). Errors: UserError when there are no whole answers."""
    name = _named(folder)
    if not name:
        raise UserError(f"{folder}: no answers; run `srpo eval --name={folder.name}` first")
    about = read_json(folder / FILE)
    shards = shards_of(folder / name)
    if not shards or not all(map(shard_done, shards)):
        raise UserError(f"{folder / name}: answers are missing or damaged; run `srpo eval` again")
    return about, shards


def _named(folder: pathlib.Path) -> str:
    """The folder of complete answers, "" when there is none."""
    try:
        return str(read_json(folder / FILE).get("folder", ""))
    except (OSError, UserError):
        return ""
