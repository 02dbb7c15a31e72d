"""`srpo train --dry_run`: all that can be known of a run before it starts. Writes nothing."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import jax
from ml_collections import ConfigDict

from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.distributed import compile_cache
from srpo_jax.distributed.sharding import bytes_per_device
from srpo_jax.errors import UserError
from srpo_jax.files import check_folder, existing_parent, read_json
from srpo_jax.runs.identity import check_end, check_same
from srpo_jax.runs.trackers import modules_of
from srpo_jax.train.checkpoint.seal import space_needed, steps_in
from srpo_jax.train.setup import Setup, counts, headline, make_setup
from srpo_jax.train.validation.validation import MakeEvaluators, Validation


def dry_run(
    cfg: Config | ConfigDict,
    workdir: str | pathlib.Path,
    *,
    verify: bool = False,
    make_evaluators: MakeEvaluators | None = None,
) -> str:
    """The report, a line per fact. Reads config, model config, trees, held-out data and picture
    sizes. verify: see setup.make_setup. make_evaluators: see train.

    Errors: UserError, as the run itself would raise it, for settings and data that do not fit; and
    when a checkpoint does not fit on the disk, or the workdir holds another run or a later step.
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    check_folder(workdir / "checkpoints")
    compile_cache.check(cfg.train.compilation_cache)
    if jax.process_index() == 0:  # the run's trackers are there only
        modules_of(cfg.train.report_to)
    setup = make_setup(cfg, workdir, verify=verify, keep=False)
    _check_validation(cfg, setup, make_evaluators)
    found = [headline(cfg, setup, 0), *_memory(setup), _data(cfg, setup)]
    found += _disk(cfg, setup, workdir)
    return "\n".join([*found, "dry run: nothing was written"])


def _check_validation(cfg: Config, setup: Setup, make_evaluators: MakeEvaluators | None) -> None:
    """As the run does it, but what that writes of questions (pictures that have no file of their
    own, the embedded world) goes to a folder that is removed.
    """
    with tempfile.TemporaryDirectory() as folder:
        Validation(cfg, setup, pathlib.Path(folder), make_evaluators, keep=False)


def _memory(setup: Setup) -> list[str]:
    parts = {
        "parameters": setup.target.params,
        "optimizer": (setup.target.step, setup.target.opt_state),
        "master copy": setup.target.master,
        "frozen policy": setup.target.base,
    }
    sizes = {name: bytes_per_device(tree) for name, tree in parts.items()}
    told = ", ".join(f"{name} {human(size)}" for name, size in sizes.items() if size)
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    room = f" of {human(limit)}" if limit else ""
    trained, total = counts(setup)
    return [
        f"parameters: {trained} trained of {total}",
        f"per device: {told}; {human(sum(sizes.values()))} in all{room}, before activations "
        "(`srpo plan` compiles the step and knows those)",
        f"devices: {setup.mesh.size} x {device.device_kind} of {jax.process_count()} process(es)",
    ]


def _data(cfg: Config, setup: Setup) -> str:
    plan = setup.batches.plan(0)
    rows = max(1, len(plan.rows))
    each, questions = setup.batches.rows_per_batch, len(setup.batches.used)
    share = cfg.pack.questions / questions if cfg.pack.questions else each / rows
    return (
        f"epochs: {questions} questions in {rows} rows each, {each} rows a "
        f"step; {cfg.train.steps} steps are {cfg.train.steps * share:.2f} epochs"
    )


def _disk(cfg: Config, setup: Setup, workdir: pathlib.Path) -> list[str]:
    stored = setup.target._replace(base=None)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stored))
    free = shutil.disk_usage(existing_parent(workdir)).free
    if free < space_needed(size):
        raise UserError(
            f"a checkpoint takes {human(space_needed(size))} but {workdir} has {human(free)} left; "
            "use another --workdir"
        )
    many = cfg.train.keep + cfg.train.keep_best
    short = "" if free > (many + 1) * size else f": not enough for the {many} that are kept"
    steps = steps_in(workdir / "checkpoints")
    going_on = "a new run"
    if steps:
        going_on = f"goes on from step {steps[-1]} at the latest"
        if (workdir / "config.json").is_file():
            run = read_json(workdir / "config.json").get("run") or {}
            check_same(run, setup.run, workdir / "checkpoints")
        check_end(steps[-1], cfg.train.steps, workdir / "checkpoints")
    return [
        f"checkpoints: {human(size)} each, every {cfg.train.save_every} steps, {many} kept; "
        f"{human(free)} free{short}",
        f"workdir: {workdir}, {going_on}",
    ]


def human(size: int) -> str:
    """Bytes as 0.3 MB, 12.5 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
