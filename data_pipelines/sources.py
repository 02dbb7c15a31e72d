"""Where a config's records come from: a JSONL file, or the embedded world by name.

`ssui_mini:train`, `ssui_mini:validation` and `ssui_mini:test` name the embedded world's splits.
They are drawn on first use into WORKDIR/data/ssui_mini, as the same JSONL and image files that a
user's own records would be. Switches follow after commas, `ssui_mini:train,wrong=0.3,steps=8` (all
of them: ssui_mini/options.py); each choice of them has a folder of its own, named after it.
"""

from __future__ import annotations

import os
import pathlib

from srpo_jax.data_pipelines.ssui_mini.dataset import WORLD, build_dataset
from srpo_jax.data_pipelines.ssui_mini.options import parse_options
from srpo_jax.data_pipelines.ssui_mini.world import SPLITS
from srpo_jax.errors import UserError


def records_path(spec: str, workdir: str | os.PathLike, *, field: str) -> pathlib.Path:
    """The JSONL file that `spec` stands for, drawing a split of the embedded world on first use.

    field: the config field the spec comes from, for messages. Raises UserError for an empty spec,
    an unknown split of the world or a switch that it has not; a missing file is an error of
    records.read_records, later.
    """
    if not spec:
        raise UserError(f"{field} is empty: give a JSONL file of records, or {WORLD}:train")
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
