"""Where a config's records and trees come from: files, the embedded world by name, or a bucket.

`ssui_mini:train` and `ssui_mini:test` name the embedded world's splits. They are drawn once, into
WORKDIR/data/ssui_mini, as the same JSONL and image files that a user's own records would be.
`gs://BUCKET/PATH` is fetched into this host's cache first (srpo_jax/buckets.py).
"""

from __future__ import annotations

import os
import pathlib

from srpo_jax.buckets import fetch_records, fetch_trees, is_url
from srpo_jax.data_pipelines.ssui_mini.dataset import SPLITS, WORLD, build_dataset
from srpo_jax.errors import UserError


def records_path(spec: str, workdir: str | os.PathLike, *, field: str) -> pathlib.Path:
    """The JSONL file that `spec` stands for, drawing the embedded world, or fetching what lies in
    a bucket, on first use.

    field: the config field the spec comes from, for messages. Raises UserError for an empty spec
    or an unknown split of the world; a missing file is an error of records.read_records, later.
    """
    if not spec:
        raise UserError(f"{field} is empty: give a JSONL file of records, or {WORLD}:train")
    if is_url(spec):
        return fetch_records(spec)
    world, _, split = spec.partition(":")
    if world != WORLD:
        return pathlib.Path(spec)
    if split not in SPLITS:
        raise UserError(f"{field} {spec!r}: {WORLD} has the splits {', '.join(SPLITS)}")
    folder = pathlib.Path(workdir) / "data" / WORLD
    if not all((folder / f"{name}.jsonl").exists() for name in SPLITS):
        counts = build_dataset(folder)
        print(
            f"drew {WORLD}: {counts['train']} train and {counts['test']} test records, "
            f"{counts['pictures']} pictures, into {folder}",
            flush=True,
        )
    return folder / f"{split}.jsonl"


def trees_path(spec: str, workdir: str | os.PathLike) -> pathlib.Path:
    """The folder of trees that `spec` stands for, with the verdicts beside it; "" is WORKDIR/trees.
    Errors: UserError for an address in a bucket with nothing behind it.
    """
    return (
        fetch_trees(spec) if is_url(spec) else pathlib.Path(spec or pathlib.Path(workdir, "trees"))
    )
