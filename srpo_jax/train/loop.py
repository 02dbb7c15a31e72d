"""Train a policy on the reasoning trees of a workdir: reads from top to bottom.

    trees -> batches -> step -> step -> ... -> checkpoint, verified

Running the same command again goes on where it stopped, with the parameters that an uninterrupted
run would have, bit for bit: batch k is a function of k, and the state is the checkpoint's.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any

import jax
from ml_collections import ConfigDict

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.console import compiling
from srpo_jax.distributed import compile_cache
from srpo_jax.distributed.lifecycle import agree, agree_on_file, compile_together, report_failure
from srpo_jax.distributed.sharding import put_batch
from srpo_jax.distributed.stop import StopRequest, leave
from srpo_jax.distributed.watchdog import Watchdog
from srpo_jax.files import check_folder
from srpo_jax.models.hf.load import load_params
from srpo_jax.owners import Owner, read_holder
from srpo_jax.pack.batches import make_loader
from srpo_jax.pack.examples import Examples
from srpo_jax.places import check_place
from srpo_jax.runs.identity import check_end, check_same, policy_files, write_config
from srpo_jax.runs.ledger import FILE as EVENTS
from srpo_jax.runs.ledger import Ledger
from srpo_jax.runs.metrics import Metrics
from srpo_jax.runs.profiling import Profile
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.setup import Setup, check_attention, headline, make_setup, weights_dtype
from srpo_jax.train.step_metrics import StepMetrics
from srpo_jax.train.train_state import TrainState, init_state
from srpo_jax.train.train_step import make_train_step
from srpo_jax.train.validation.validation import MakeEvaluators, Validation

OWNER = "train.owner"  # in the workdir
PLACE = "place"  # in the notes of a checkpoint: where its data ends, see Batches.place


def train(
    cfg: Config | ConfigDict,
    workdir: str | os.PathLike,
    *,
    examples: Examples | None = None,
    profile: tuple[int, int] | None = None,
    born: float | None = None,
    verify: bool = False,
    make_evaluators: MakeEvaluators | None = None,
) -> dict[str, Any]:
    """Trains to cfg.train.steps and returns a summary: step, started_at, loss, seconds, checkpoint.

    Trees come from cfg.data.trees (default WORKDIR/trees) with the verdicts beside them, or from
    `examples`. With objective.lambda_exp 0 this is SFT on the reference paths. When it returns, the
    last checkpoint is on disk and was read back. profile: these steps, counted from the start of
    this call, are traced into WORKDIR/profile, see profiling.py. born: when the program began, in
    seconds of the wall clock, for the ledger (runs/ledger.py); default: now. verify: trees and
    verdicts are read in full first; else they are known by size and time. make_evaluators: what is
    looked at every cfg.eval.every steps besides the loss (train/validation). Looks change nothing
    of what is trained; with cfg.train.patience they may end the run before cfg.train.steps.
    Errors: UserError for settings that do not fit together, a workdir of another run, or a loss
    that is no number; RunFailure when the last checkpoint does not verify. SIGTERM and the first
    Ctrl-C finish the step, save, and raise SystemExit (code 0, or SRPO_STOPPED_EXIT_CODE) or
    KeyboardInterrupt.

    Example:
        config = srpo_jax.load_config("configs/ssui_mini.py", ["--config.train.steps=50"])
        summary = srpo_jax.train(config, "runs/mini")  # on the trees of explore
        print(summary["loss"], summary["checkpoint"])
    """
    cfg, workdir = as_config(cfg), pathlib.Path(workdir)
    first = jax.process_index() == 0
    watchdog = Watchdog(workdir / "stacks", cfg.train.watchdog_minutes, process=jax.process_index())
    with (
        report_failure(),
        Ledger(workdir / EVENTS if first else None, born=born) as ledger,
        watchdog,
        ExitStack() as held,
    ):
        for name in ("checkpoints", *(("profile",) if profile else ())):
            check_folder(workdir / name)
        compile_cache.use(cfg.train.compilation_cache)
        setup = make_setup(cfg, workdir, examples, verify=verify)
        agree("run", setup.run)
        check_attention(setup)
        check_place(workdir)
        owner = held.enter_context(owner_of(workdir)) if first else None
        agree("owner", {})  # the others wait, or are told, before they touch the workdir
        agree_on_file(workdir / OWNER, lambda path: read_holder(path).get("token", ""))
        validation = Validation(cfg, setup, workdir, make_evaluators)
        validation.prepare()
        kept = arguments(Checkpoints, cfg.train)
        folder = workdir / "checkpoints"
        with Checkpoints(folder, **kept, config=cfg.to_dict()) as checkpoints, report_failure():
            ledger.enter("restore")
            state, notes = first_state(cfg, setup, checkpoints)
            start = saved = int(state.step)
            setup.batches.stream.start_from(notes.get(PLACE))
            validation.go_on_from(notes)
            ledger.enter("init")
            ledger.open(start)
            if first:
                policy = policy_files(local_folder(cfg.model.path))
                write_config(cfg, setup.run, setup.facts(), workdir, policy)
                print(headline(cfg, setup, start), flush=True)
            step = make_train_step(
                setup.model,
                setup.objective,
                setup.optimizer,
                setup.mesh,
                setup.shardings,
                accumulate=cfg.train.accumulate,
                lora=setup.lora,
            )
            step_metrics = StepMetrics(
                cfg.train,
                setup.batches,
                notes,
                flops=setup.flops,
                devices=list(setup.mesh.devices.flat),
            )
            log = (
                Metrics(
                    workdir,
                    steps=cfg.train.steps,
                    start=start,
                    report_to=cfg.train.report_to,
                    name=cfg.name,
                    config=cfg.to_dict(),
                    look=validation.due(start),
                )
                if first
                else nullcontext()
            )

            def look(step: int, state: TrainState) -> None:
                ledger.enter("validate")
                watchdog.beat(f"step {step}", patient=True)
                begin = time.monotonic()
                values = validation.look(step, state, writer)
                step_metrics.looked(values, time.monotonic() - begin)
                watchdog.beat(f"the look at step {step}")

            end = start if validation.spent else cfg.train.steps
            loader = make_loader(setup.batches, start_step=start, num_steps=end)
            tracer = Profile(profile, workdir / "profile", start, cfg.train.steps - start)
            leaving = False
            pending = None  # metrics of the step before: read while the device works on this one
            with StopRequest() as stop:  # also while the last save is still being written
                # report_failure: the others are told before anything below waits for them.
                with log as writer, closing(loader), tracer, report_failure():
                    if validation.due(start) and not validation.spent:
                        look(start, state)
                    for k, batch, waited in _timed(loader, ledger):
                        if validation.spent:  # by the look before
                            break
                        ledger.enter("compile" if k == start else "step")
                        with tracer.step(k - start, pending):
                            arrays = put_batch(batch, setup.mesh)
                            with _first_one(k == start, first):
                                if k == start:
                                    step = compile_together(step, state, arrays)
                                state, metrics = step(state, arrays)
                        ledger.enter("step")
                        tracer.after(k - start, metrics)
                        if pending:
                            step_metrics.report(*pending, saved, writer)
                        pending = (k + 1, metrics, waited)
                        leaving = stop.asked(k + 1)
                        ledger.steps(k + 1)
                        if validation.due(k + 1) and not leaving:  # else when the run goes on
                            step_metrics.report(*pending, saved, writer)
                            pending = None
                            look(k + 1, state)
                        last = leaving or validation.spent or k + 1 == cfg.train.steps
                        if last or (k + 1) % cfg.train.save_every == 0:
                            if pending:  # no number: never saved
                                step_metrics.report(*pending, saved, writer)
                            pending = None
                            if owner:
                                owner.check()
                            ledger.enter("save")
                            watchdog.beat(f"step {k + 1}", patient=True)
                            place = {PLACE: setup.batches.stream.place(k + 1)}
                            notes = {**step_metrics.notes, **place, **validation.notes}
                            saved = checkpoints.save(state, setup.run, notes, step_metrics.means())
                        watchdog.beat(f"step {k + 1}", patient=last)
                        if leaving:
                            break
                del state  # makes room: the checkpoint is read back where the state lay
                if saved > start:
                    ledger.enter("verify")
                    checkpoints.verify(saved, setup.target)
                    ledger.enter("other")
        if leaving:
            assert stop.signal is not None  # as it asked to leave
            leave(stop.signal, saved, cfg.train.steps)
    return {
        "step": saved,
        "started_at": start,
        "loss": step_metrics.loss,
        "seconds": round(step_metrics.seconds(), 1),
        "checkpoint": str(checkpoints.directory / str(saved)),
    }


def owner_of(workdir: pathlib.Path) -> Owner:
    """Of a workdir, while something is trained into it: the second one that tries is told."""
    again = "wait for it or stop it, or give another --workdir"
    return Owner(workdir / OWNER, str(workdir), "trained into", again)


def first_state(
    cfg: Config, setup: Setup, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """(state, notes): of the newest checkpoint that verifies, else from the policy's weights.

    Errors: UserError when the checkpoints are of another run, or past the end of this one.
    """
    folder, target = checkpoints.directory, setup.target
    state, notes = checkpoints.restore(target, lambda stored: check_same(stored, setup.run, folder))
    if state is not None:
        check_end(int(state.step), cfg.train.steps, folder)
    with_base = target.base is not None
    if state is not None and not with_base:
        return state, notes
    shardings = setup.shardings
    kept = jax.tree.leaves(target.base if with_base else target.params)[0].dtype
    params = load_params(
        local_folder(cfg.model.path),
        setup.config,
        dtype=weights_dtype(cfg, setup.lora) if state is None else kept,
        shardings=shardings.base if with_base else shardings.params,
    )
    if state is not None:
        return state._replace(base=params), notes
    state = init_state(
        params,
        setup.optimizer,
        shardings,
        with_reference=with_base,
        lora=setup.lora,
        dtype=kept,
    )
    return state, notes


def _first_one(is_first: bool, says_so: bool) -> AbstractContextManager:
    """Around each step; of the first one it is said that it compiles."""
    return compiling("train", quiet=not says_so) if is_first else nullcontext()


def _timed(loader: Iterator, ledger: Ledger) -> Iterator[tuple[int, dict, float]]:
    """(k, batch, seconds that were waited for it)."""
    while True:
        ledger.enter("data")
        begin = time.monotonic()
        found = next(loader, None)
        if found is None:
            return
        yield (*found, time.monotonic() - begin)
