"""`srpo plan --for=explore`: which mesh, batch and slots to explore with, without a TPU.

    question -> the engine's shape -> meshes that the weights fit -> rows that the memory holds
             -> the engine's two programs, compiled by libtpu -> ranked by questions a second

The mesh rule and the numbers of rows are those of explore itself (inference/sampling_mesh.py).
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import Config
from srpo_jax.distributed.accelerators import Slice, bound_rows, parse_slice
from srpo_jax.errors import UserError
from srpo_jax.files import check_folder
from srpo_jax.inference import sampling_mesh
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.plan.compiler_pool import Compiler, Job, Result, cache_folder, check_libtpu
from srpo_jax.plan.plan import FULL_EFFORT, LEAST_EFFORT, Options, progress
from srpo_jax.plan.sampling.estimate import Candidate
from srpo_jax.plan.sampling.table import summary
from srpo_jax.plan.sampling.task import Task
from srpo_jax.plan.sampling.workload import engine_shape, workload

WORKER = "srpo_jax.plan.sampling.compile_job"


def plan(
    cfg: Config | ConfigDict,
    topology: str,
    options: Options,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The plan for one slice, as the JSON object that the command prints.

    say: takes progress lines (default: stderr). Errors: UserError for what no plan can be made of,
    also when nothing fits.
    """
    cfg, whole = as_config(cfg), parse_slice(topology)
    check_libtpu()
    if options.remats or options.row_tokens:
        raise UserError("--remat and --row_tokens are of training: leave them out of --for=explore")
    task = _task(cfg, whole, options)
    found, dropped, chosen = candidates(task, options)
    say = say or progress()
    say(f"{task.where.name}: {len(found)} meshes to compile, {len(dropped)} cannot fit")
    compiled = _compile(task, found, options, say)
    return summary(
        task, compiled, options.question, price=options.price, dropped=dropped, chosen=chosen
    )


def _task(cfg: Config, whole: Slice, options: Options) -> Task:
    config = load_model_config(local_folder(cfg.model.path, weights=False), cfg.model.family)
    shape = engine_shape(cfg, config, options.question)
    params = abstract_params(config, jnp.dtype(cfg.model.dtype))
    work = workload(cfg, options.question, shape.slots)
    task = Task(cfg, config, params, whole, whole, shape, work)
    alone = dataclasses.replace(task, where=one_host(whole))
    return alone if _works_alone(alone) else task


def one_host(whole: Slice) -> Slice:
    """The chips of one host of a slice, as a slice."""
    sides = {1: (1, 1), 4: (2, 2), 8: (2, 4)}[whole.host_chips]
    return Slice(whole.chip, (*sides, *[1] * (len(whole.sides) - 2)))


def _works_alone(task: Task) -> bool:
    """As sampling_mesh.works_alone, which asks the devices of the process."""
    if task.cfg.explore.together != "auto":
        return task.cfg.explore.together == "no"
    weights = _weights(task).values()
    return any(sampling_mesh.fits_well(size, task.memory) for size in weights)


def _weights(task: Task) -> dict[int, int]:
    return sampling_mesh.split_weights(task.config, task.cfg.model.dtype, task.where.devices)


def candidates(
    task: Task, options: Options
) -> tuple[list[Candidate], list[dict[str, Any]], Candidate | None]:
    """(what to compile, what cannot fit and why, what explore.mesh=auto takes).

    By default every tensor size that the weights can be split by, with as many rows as pay and fit.
    Errors: UserError when what was asked for is not legal, or nothing fits.
    """
    devices, heads = task.where.devices, task.config.text.num_kv_heads
    weights = _weights(task)
    meshes = [(devices // tensor, 1, tensor) for tensor in weights]
    for data, fsdp, tensor in options.meshes:
        sampling_mesh.asked_sizes(f"data={data},fsdp={fsdp},tensor={tensor}", devices, heads)
    found, dropped = [], []
    for mesh in options.meshes or meshes:
        try:
            rows = _rows(task, weights, mesh)
        except UserError as error:
            dropped.append({"mesh": mesh, "why": str(error)})
            continue
        parts = mesh[0] * mesh[1]
        asked = [-(-count // parts) * parts for count in options.rows]
        found += [Candidate(*mesh, count) for count in dict.fromkeys(asked or [rows])]
    if not found:
        raise UserError(f"nothing fits {task.where.name}: {dropped[-1]['why']}")
    sizes = sampling_mesh.sampling_sizes(weights, devices, task.memory)
    chosen = [candidate for candidate in found if candidate.mesh == sizes]
    return found, dropped, chosen[0] if chosen else None


def _rows(task: Task, weights: dict[int, int], mesh: tuple[int, int, int]) -> int:
    """As many as pay and fit, or explore.batch. weights: bytes where tensor alone splits them."""
    data, fsdp, tensor = mesh
    if tensor not in weights:
        raise UserError(f"tensor={tensor} does not divide every large parameter")
    bound = bound_rows(task.where.chip.kind)
    assert bound  # the chip is in the table
    shape, itemsize = task.shape, jnp.dtype(task.cfg.model.dtype).itemsize
    needs = sampling_mesh.Shape(shape.tokens, shape.slots, shape.new_tokens, shape.patches)
    rows = sampling_mesh.rows_that_fit(
        sampling_mesh.bytes_per_row(task.config.text, needs, tensor=tensor, itemsize=itemsize),
        shape.slots,
        weights=weights[tensor] // fsdp
        + sampling_mesh.fixed_bytes(task.config, needs, tensor=tensor, itemsize=itemsize),
        memory=task.memory,
        bound=bound,
        replicas=data * fsdp,
    )
    parts = data * fsdp
    return -(-task.cfg.explore.batch // parts) * parts or rows


def _compile(
    task: Task, found: list[Candidate], options: Options, say: Callable[[str], None]
) -> list[tuple[Candidate, Result]]:
    """All of them, the fitting ones first and fastest first."""
    folder = cache_folder(options.cache)
    check_folder(folder)
    tower = inspect.getsource(sys.modules[task.config.family.tower.__module__])
    names = [f"{task.where.name} {candidate.name}" for candidate in found]
    with Compiler(
        folder, repr(task.config) + tower, say, workers=options.jobs, worker=WORKER
    ) as compiler:
        jobs = [_job(task, candidate, LEAST_EFFORT) for candidate in found]
        results = compiler.until(jobs, names, len(jobs))
        known = rank(task, [(c, r) for c, r in zip(found, results) if r is not None])
        if options.full and known[0][1]["status"] == "ok":
            winner = known[0][0]
            name = f"{names[found.index(winner)]} (full effort)"
            (again,) = compiler.until([_job(task, winner, FULL_EFFORT)], [name], 1)
            assert again  # of one job one result is wanted
            known = rank(task, [(winner, again), *known[1:]])
    return known


def rank(task: Task, known: list[tuple[Candidate, Result]]) -> list[tuple[Candidate, Result]]:
    """What fits first, by questions a second."""

    def order(pair: tuple[Candidate, Result]) -> tuple[bool, float]:
        candidate, result = pair
        if result["status"] != "ok":
            return True, 0.0
        return False, -task.estimate(candidate, result["programs"]).questions_per_second

    return sorted(known, key=order)


def _job(task: Task, candidate: Candidate, effort: float) -> Job:
    cfg = Config(model=task.cfg.model, explore=task.cfg.explore)
    shape = dataclasses.replace(task.shape, rows=candidate.rows)
    return {
        "config": cfg.to_dict(),
        "sampling": dataclasses.asdict(task.cfg.explore),
        "topology": task.where.name,
        "host_bounds": task.where.host_bounds,
        "mesh": candidate.mesh,
        "shape": dataclasses.asdict(shape),
        "effort": effort,
    }
