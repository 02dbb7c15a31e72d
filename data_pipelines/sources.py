"""Where a config's records and trees come from: files, the embedded world by name, or a bucket.

`ssui_mini:train`, `ssui_mini:validation` and `ssui_mini:test` name the embedded world's splits.
They are drawn on first use into WORKDIR/data/ssui_mini, as the same JSONL and image files that a
user's own records would be. Switches follow after commas, `ssui_mini:train,wrong=0.3,steps=8` (all
of them: ssui_mini/options.py); each choice of them has a folder of its own, named after it.
`gs://BUCKET/PATH` is fetched into this host's cache first (srpo_jax/buckets).
"""

from __future__ import annotations

import os
import pathlib

from srpo_jax.buckets.fetch import fetch_records, fetch_trees
from srpo_jax.buckets.objects import is_url
from srpo_jax.data_pipelines.ssui_mini.dataset import WORLD, build_dataset
from srpo_jax.data_pipelines.ssui_mini.options import parse_options
from srpo_jax.data_pipelines.ssui_mini.world import SPLITS
from srpo_jax.errors import UserError


def records_path(spec: str, workdir: str | os.PathLike, *, field: str) -> pathlib.Path:
    """The JSONL file that `spec` stands for, drawing a split of the embedded world, or fetching
    what lies in a bucket, on first use.

    field: the config field the spec comes from, for messages. Raises UserError for an empty spec,
    an unknown split of the world or a switch that it has not; a missing file is an error of
    records.read_records, later.
    """
    if not spec:
        raise UserError(f"{field} is empty: give a JSONL file of records, or {WORLD}:train")
    if is_url(spec):
        return fetch_records(spec)
    world, _, rest = spec.partition(":")
    if world != WORLD:
        return pathlib.Path(spec)
    split, comma, switches = rest.partition(",")
    if split not in SPLITS:
        raise UserError(
            f"{field} {spec!r}: {WORLD} has the splits {', '.join(SPLITS)}; "
            "switches follow after a comma"
        )
    try:
        options = parse_options(switches + comma * (not switches))
    except ValueError as e:
        raise UserError(f"{field} {spec!r}: {e}") from None
    name = ",".join(filter(None, (WORLD, options.spelled())))
    folder = pathlib.Path(workdir) / "data" / name
    path = folder / f"{split}.jsonl"
    if not path.exists():
        counts = build_dataset(folder, options, (split,))
        print(
            f"drew {name}: {counts[split]} {split} records, {counts['pictures']} pictures, "
            f"into {folder}",
            flush=True,
        )
    return path


def trees_path(spec: str, workdir: str | os.PathLike) -> pathlib.Path:
    """The folder of trees that `spec` stands for, with the verdicts beside it; "" is WORKDIR/trees.
    Errors: UserError for an address in a bucket with nothing behind it.
    """
    return (
        fetch_trees(spec) if is_url(spec) else pathlib.Path(spec or pathlib.Path(workdir, "trees"))
    )
