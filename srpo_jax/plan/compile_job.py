"""Compiles one candidate of `srpo plan`: the real train step, for TPUs that are not there.

    python -m srpo_jax.plan.compile_job < job.json > result.json

A process of its own, because libtpu wants one and may end it. libtpu compiles for a described
topology; nothing is allocated, no weight is read. The job is a JSON object: config (the whole
config, with mesh, remat and rows of the candidate), topology, host_bounds, budgets (of a row) and
effort (-1.0: as little optimisation as there is; 0.0: all of it). Standard input stays open as long
as the parent lives; when it ends, so does this process, however the parent ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import stored_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.distributed import sharding
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.errors import UserError, one_line
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.inputs import no_patches
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.pack.packing import Budgets, fill_row
from srpo_jax.plan.hlo_cost import read_stats
from srpo_jax.train.losses.objective import Objective, needs_reference_policy
from srpo_jax.train.optimizer import Optimizer, make_optimizer
from srpo_jax.train.train_state import TrainState, abstract_state, state_shardings
from srpo_jax.train.train_step import make_train_step


def describe_state(cfg: Config, config: ModelConfig) -> tuple[Optimizer, Objective, TrainState]:
    """The optimizer, the loss and the abstract state that a run with this config has."""
    abstract = abstract_params(config, jnp.float32)
    optimizer = make_optimizer(cfg.train, abstract)
    objective = Objective(**arguments(Objective, cfg.objective))
    by_reference = needs_reference_policy(objective)
    dtype = jnp.dtype(cfg.train.param_dtype)
    state = abstract_state(abstract, optimizer, with_reference=by_reference, dtype=dtype)
    return optimizer, objective, state


def lower_step(
    cfg: Config, config: ModelConfig, mesh: Mesh, budgets: Budgets
) -> jax.stages.Lowered:
    """The train step that srpo_jax/train/loop.py would run with this config, traced for `mesh`."""
    optimizer, objective, state = describe_state(cfg, config)
    model = PolicyModel(
        config,
        dtype=jnp.dtype(cfg.model.dtype),
        remat=cfg.model.remat,
        constrain=sharding.make_constrain(mesh),
        attend=Attend(cfg.model.attention, mesh),
    )
    step = make_train_step(
        model,
        objective,
        optimizer,
        mesh,
        state_shardings(state, mesh),
        accumulate=cfg.train.accumulate,
    )
    row = fill_row([], budgets, questions=1.0, no_patches=no_patches(config))
    batch = {
        name: jax.ShapeDtypeStruct((cfg.pack.rows, *x.shape), x.dtype) for name, x in row.items()
    }
    return step.lower(state, batch)


def compile_job(job: dict[str, Any]) -> dict[str, Any]:
    """{"status": "ok", ...} with memory in bytes per device and what hlo_cost.py counts, or
    {"status": "oom" | "refused", "message": ...}. Other errors of the compiler are raised.
    """
    cfg = stored_config(job["config"])
    try:
        config = load_model_config(local_folder(cfg.model.path, weights=False), cfg.model.family)
        devices = devices_of(job["topology"], job["host_bounds"])
        mesh = make_mesh(**arguments(make_mesh, cfg.mesh), devices=devices)
        began = time.monotonic()
        lowered = lower_step(cfg, config, mesh, Budgets(**job["budgets"]))
    except UserError as error:
        return {"status": "refused", "message": str(error)}
    traced = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=compiler_options(job["effort"]))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"status": "oom", **out_of_memory(str(error)), "seconds": time.monotonic() - began}
    done = time.monotonic()
    memory = compiled.memory_analysis()
    assert memory  # XLA's compilers all have one
    stats = dataclasses.asdict(read_stats(compiled.as_text() or "", dict(mesh.shape)))
    for collective in stats["collectives"]:
        collective["extent"] = extent(mesh, collective["axes"])
    return {
        "status": "ok",
        "device_kind": mesh.devices.flat[0].device_kind,
        "peak_bytes": int(memory.peak_memory_in_bytes),
        "argument_bytes": int(memory.argument_size_in_bytes),
        "temp_bytes": int(memory.temp_size_in_bytes),
        "trace_seconds": traced - began,
        "seconds": done - began,
        **stats,
    }


def compiler_options(effort: float) -> dict[str, Any]:
    """The compiler's options. Least effort gives the same collectives, peak memory within 3 %, a
    quarter of the time (measured with a 7B step for v6e:8x8: 183 s and 43 s). jax 0.12 has the
    option no longer.
    """
    known = hasattr(jax.config, "jax_exec_time_optimization_effort")
    return {"exec_time_optimization_effort": effort} if effort and known else {}


def devices_of(topology: str, host_bounds: tuple[int, ...] | None) -> list[Any]:
    """The devices of a described TPU slice."""
    more = {"chips_per_host_bounds": list(host_bounds)} if host_bounds else {}
    return topologies.get_topology_desc(topology_name=topology, platform="tpu", **more).devices


def extent(mesh: Mesh, axes: tuple[str, ...]) -> list[int]:
    """How many chips of each side of the slice the devices along these mesh axes span."""
    if not set(axes) <= set(mesh.axis_names):
        axes = mesh.axis_names  # groups that are no axes: as if all devices took part
    index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    coords = np.array([device.coords for device in np.ravel(mesh.devices[index])])
    return [len(set(side)) for side in coords.T.tolist()]


def out_of_memory(message: str) -> dict[str, Any]:
    """What the compiler says of a program that does not fit: {"message", "needed_gib"}.

    Two forms: "Used 18.75G of 15.75G hbm", "... (1.16T) exceeds available HBM (15.75G)".
    """
    text = one_line(message)
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", text)
    found = found or re.search(r"\(([\d.]+)([KMGT])\) exceeds available", text)
    found = found or re.search(r"([\d.]+)([KMGT]) exceeds", text)
    scale = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
    needed = float(found[1]) * scale[found[2]] if found else None
    return {"message": text.removeprefix("RESOURCE_EXHAUSTED: ")[:300], "needed_gib": needed}


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock would be missed at the end
        pass
    os._exit(1)


def run_job(function: Callable[[dict[str, Any]], dict[str, Any]]) -> NoReturn:
    """Answers the job on standard input on standard output, and ends the process."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(json.dumps(function(job)), flush=True)
    os._exit(0)  # the thread still reads, and libtpu's own ending takes seconds


if __name__ == "__main__":
    run_job(compile_job)
