"""Train a policy on the reasoning trees of a workdir: reads from top to bottom.

    trees -> batches -> step -> step -> ... -> checkpoint, verified

Running the same command again goes on where it stopped, with the parameters that an uninterrupted
run would have, bit for bit: batch k is a function of k, and the state is the checkpoint's.
"""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.examples import Examples
from data_pipelines.loader import make_loader
from srpo_jax import compile_cache, sharding
from srpo_jax.checkpoint import Checkpoints
from srpo_jax.events import FILE as EVENTS
from srpo_jax.events import Ledger
from srpo_jax.hf.load import load_params
from srpo_jax.mesh import row_shards, rows_here
from srpo_jax.metrics import Metrics
from srpo_jax.prepare import Setup, check_attention, headline, prepare, weights_dtype
from srpo_jax.processes import agree, alarm, compile_together
from srpo_jax.profiling import Profile
from srpo_jax.run_identity import check_end, check_same, write_config
from srpo_jax.state import TrainState, init_state
from srpo_jax.step import make_train_step
from srpo_jax.tally import Tally
from srpo_jax.watchdog import Watchdog


def train(
    cfg: Any,
    workdir: str | os.PathLike,
    *,
    examples: Examples | None = None,
    profile: tuple[int, int] | None = None,
    born: float | None = None,
) -> dict[str, Any]:
    """Trains to cfg.train.steps and returns a summary: step, started_at, loss, seconds, checkpoint.

    Trees come from cfg.data.trees (default WORKDIR/trees), or `examples`. Without branches, or with
    objective.lambda_exp 0, this is SFT on the reference paths. When it returns, the last checkpoint
    is on disk and was read back. profile: these steps, counted from the start of this call, are
    traced into WORKDIR/profile, see profiling.py. born: when the program began, in seconds of the
    wall clock, for the ledger (events.py); default: now.
    Errors: UserError for settings that do not fit together, a workdir of another run, or a loss
    that is no number; RunFailure when the last checkpoint does not verify. SIGTERM and the first
    Ctrl-C finish the step, save, and raise SystemExit (code 0, or SRPO_STOPPED_EXIT_CODE) or
    KeyboardInterrupt.
    """
    workdir = pathlib.Path(workdir)
    first = jax.process_index() == 0
    watchdog = Watchdog(
        workdir / "stacks", cfg.train.watchdog_minutes, process=jax.process_index()
    )
    with alarm(), Ledger(workdir / EVENTS if first else None, born=born) as ledger, watchdog:
        compile_cache.use(cfg.train.compilation_cache)
        setup = prepare(cfg, workdir, examples)
        agree("run", setup.run)
        check_attention(setup)
        workdir.mkdir(parents=True, exist_ok=True)
        kept = {name: cfg.train[name] for name in ("keep", "keep_best", "best_metric")}
        folder = workdir / "checkpoints"
        with Checkpoints(folder, **kept, config=cfg.to_dict()) as checkpoints, alarm():
            ledger.enter("restore")
            state, notes = first_state(cfg, setup, checkpoints)
            start = saved = int(state.step)
            ledger.enter("init")
            ledger.open(start)
            if first:
                write_config(cfg, setup.run, workdir)
                print(headline(cfg, setup, start), flush=True)
            step = make_train_step(
                setup.model, setup.objective, setup.optimizer, setup.mesh, setup.places,
                accumulate=cfg.train.accumulate, lora=setup.lora,
            )  # fmt: skip
            tally = Tally(
                cfg, setup.batches, notes, flops=setup.flops, devices=list(setup.mesh.devices.flat)
            )
            log = Metrics(
                workdir, steps=cfg.train.steps, start=start, report_to=cfg.train.report_to,
                name=cfg.name, config=cfg.to_dict(),
            ) if first else nullcontext()  # fmt: skip
            loader = make_loader(setup.batches, start_step=start, num_steps=cfg.train.steps)
            tracer = Profile(profile, workdir / "profile", start, cfg.train.steps - start)
            leaving = False
            pending = None  # metrics of the step before: read while the device works on this one
            with StopRequest() as stop:  # also while the last save is still being written
                # alarm: on an exception the others are told before anything below waits for them.
                with log as writer, closing(loader), tracer, alarm():
                    for k, batch, waited in _timed(loader, ledger):
                        ledger.enter("compile" if k == start else "step")
                        with tracer.step(k - start, pending):
                            arrays = put_batch(batch, setup.mesh)
                            if k == start:
                                step = compile_together(step, state, arrays)
                            state, metrics = step(state, arrays)
                        ledger.enter("step")
                        tracer.after(k - start, metrics)
                        if pending:
                            tally.report(*pending, saved, writer)
                        pending = (k + 1, metrics, waited)
                        leaving = stop.asked(k + 1)
                        last = leaving or k + 1 == cfg.train.steps
                        ledger.steps(k + 1)
                        if last or (k + 1) % cfg.train.save_every == 0:
                            tally.report(*pending, saved, writer)  # no number: never saved
                            pending = None
                            ledger.enter("save")
                            watchdog.beat(f"step {k + 1}", patient=True)
                            saved = checkpoints.save(state, setup.run, tally.notes, tally.means())
                        watchdog.beat(f"step {k + 1}", patient=last)
                        if leaving:
                            break
                del state  # makes room: the checkpoint is read back into the same places
                if saved > start:
                    ledger.enter("verify")
                    checkpoints.verify(saved, setup.target)
                    ledger.enter("other")
        if leaving:
            _leave(stop.signal, saved, cfg.train.steps)
    return {
        "step": saved,
        "started_at": start,
        "loss": tally.loss,
        "seconds": round(tally.seconds(), 1),
        "checkpoint": str(checkpoints.directory / str(saved)),
    }


def first_state(
    cfg: Any, setup: Setup, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """(state, notes): of the newest checkpoint that verifies, else from the policy's weights.

    Errors: UserError when the checkpoints are of another run, or past the end of this one.
    """
    place, target = checkpoints.directory, setup.target
    state, notes = checkpoints.restore(target, lambda stored: check_same(stored, setup.run, place))
    if state is not None:
        check_end(int(state.step), cfg.train.steps, place)
    with_base = target.base is not None
    if state is not None and not with_base:
        return state, notes
    places = setup.places
    kept = jax.tree.leaves(target.base if with_base else target.params)[0].dtype
    params = load_params(
        cfg.model.path,
        setup.config,
        dtype=weights_dtype(cfg, setup.lora) if state is None else kept,
        shardings=places.base if with_base else places.params,
    )
    if state is not None:
        return state._replace(base=params), notes
    made = dict(with_reference=with_base, lora=setup.lora, dtype=kept)
    return init_state(params, setup.optimizer, places, **made), notes


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows, in ascending order, as arrays of the global batch: rows over data and
    fsdp. Each device gets the rows of its place in the mesh, whichever process it belongs to.
    """
    place, shards = sharding.batch_sharding(mesh), row_shards(mesh)
    rows = len(next(iter(batch.values()))) * shards // len(rows_here(mesh, shards))
    at = {row: i for i, row in enumerate(rows_here(mesh, rows))}

    def put(local: Any) -> jax.Array:
        def part(index: tuple[slice, ...]) -> Any:
            begin, end, _ = index[0].indices(rows)
            return local[at[begin] : at[begin] + end - begin]

        return jax.make_array_from_callback((rows, *local.shape[1:]), place, part)

    return {name: put(local) for name, local in batch.items()}


class StopRequest:
    """In a `with`: SIGTERM and the first SIGINT are noted, the second SIGINT interrupts at once.

    With several processes jax's own service takes SIGTERM and makes all stop at the same step; the
    first SIGINT is handed to it as one.
    """

    def __init__(self):
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
            for number in numbers:
                self._old[number] = signal.signal(number, self._note if alone else self._pass_on)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        print(f"{signal.Signals(number).name}: finishing this step, then saving", flush=True)

    def _pass_on(self, number: int, _: Any) -> None:
        signal.signal(number, signal.default_int_handler)  # the second one interrupts
        os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Whether to stop after this step. To be called at every step by every process."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None


def _leave(number: int, step: int, steps: int) -> None:
    if jax.process_index() == 0:
        name = signal.Signals(number).name
        print(
            f"stopped by {name} after step {step}/{steps}; its checkpoint is saved and verified, "
            "run the same command again to go on",
            flush=True,
        )
    # A cluster takes 0 for "finished": launch/ asks for another code there, and starts it again.
    code = int(os.environ.get("SRPO_STOPPED_EXIT_CODE", 0))
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(code)


def _timed(loader: Iterator, ledger: Ledger) -> Iterator[tuple[int, dict, float]]:
    """(k, batch, seconds that were waited for it)."""
    while True:
        ledger.enter("data")
        begin = time.monotonic()
        found = next(loader, None)
        if found is None:
            return
        yield (*found, time.monotonic() - begin)
