"""What our checks cost a save: checkpoints of srpo_jax and of plain orbax, one after the other.

    python -m studies.speed.checkpoint_save [--mb 200] [--rounds 8] [--arrays 12] [--folder DIR]

The same state (parameters and two moments, float32, random) is saved by both in turns, in one
process, with the same number of kept steps. Two times count: how long `save` blocks the training
loop, and how long it takes until the step has its name on the disk; ours with the checksums of all
arrays in it, sealed. Each save of ours is divided by the plain one next to it, and the order
changes every round, so that what slows the machine down for a while slows both. The first round
compiles and is left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.checkpoint.seal import check_files
from srpo_jax.train.train_state import TrainState
from studies.speed.timing import table

KEPT = 2  # steps


def make_state(step: int, size: int, arrays: int) -> TrainState:
    """About `size` bytes: `arrays` parameters of equal size and their two moments."""
    rows = max(1, size // (4 * 3 * arrays * 256))
    keys = jax.random.split(jax.random.key(step), arrays)
    params = {f"layer_{i}": jax.random.normal(key, (rows, 256)) for i, key in enumerate(keys)}
    moments = tuple({name: x * scale for name, x in params.items()} for scale in (2.0, 3.0))
    return jax.block_until_ready(TrainState(jnp.int32(step), params, moments, None))


def timed(save: Callable[[], object], wait: Callable[[], object]) -> dict[str, float]:
    """Seconds that a save blocks, and until it is on disk, wall clock; and of the CPUs in all."""
    os.sync()  # what was written before is not paid for here
    cpu, begin = time.process_time(), time.perf_counter()
    save()
    blocked = time.perf_counter() - begin
    wait()
    total = time.perf_counter() - begin
    return {"blocks": blocked, "total": total, "cpu": time.process_time() - cpu}


def plain_args(state: TrainState) -> ocp.args.Composite:
    """The same arrays and a small JSON, as plain orbax is told to save them."""
    mu, nu = state.opt_state
    return ocp.args.Composite(
        meta=ocp.args.JsonSave({"step": int(state.step)}),
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave({"step": state.step, "mu": mu, "nu": nu}),
    )


def measure(folder: pathlib.Path, size: int, rounds: int, arrays: int) -> dict[str, list[dict]]:
    """{"ours", "plain"} -> the times of each round but the first."""
    found: dict[str, list[dict]] = {"ours": [], "plain": []}
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT)
    with (
        Checkpoints(folder / "ours", keep=KEPT) as ours,
        ocp.CheckpointManager(folder / "plain", options=options) as plain,
    ):
        for step in range(1, rounds + 2):
            state = make_state(step, size, arrays)
            # In turns: whoever comes second may find the disk busy.
            for name in ("ours", "plain") if step % 2 else ("plain", "ours"):
                if name == "ours":
                    times = timed(partial(ours.save, state, {}), ours.wait)
                else:
                    save = partial(plain.save, step, args=plain_args(state))
                    times = timed(save, plain.wait_until_finished)
                found[name].append(times)
        check_files(ours.directory / str(rounds + 1))  # what was timed is a checkpoint
    return {name: times[1:] for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.checkpoint_save")
    parser.add_argument("--mb", type=float, default=200, help="size of the state")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--arrays", type=int, default=12, help="parameters; each has two moments")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = int(options.mb * 2**20)
        found = measure(pathlib.Path(folder), size, options.rounds, options.arrays)
    rows, result = [], {"mb": options.mb, "rounds": options.rounds}
    for what in ("blocks", "total", "cpu"):
        ours, plain = ([times[what] for times in found[name]] for name in ("ours", "plain"))
        ratios = sorted(a / b for a, b in zip(ours, plain))
        middle = statistics.median(ratios)
        seconds = [f"{statistics.median(times):.3f} s" for times in (plain, ours)]
        rows.append((what, *seconds, f"{middle:.2f}x", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"))
        result[f"{what}_ratio"] = round(middle, 3)
    print(f"{options.mb:g} MB, {options.rounds} rounds, medians")
    print(table(("", "plain orbax", "srpo_jax", "ratio", "least to largest"), rows))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
