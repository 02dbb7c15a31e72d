"""Compiles one candidate of `srpo plan --for=explore`: the engine's two programs, for TPUs that are
not there. A process of its own, as srpo_jax/plan/compile_job.py, and read in the same way.

The job is a JSON object: config (the whole config), topology, host_bounds, mesh (data, fsdp,
tensor), shape (of the engine), and effort.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import stored_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import (
    batch_sharding,
    bytes_per_device,
    param_shardings,
    replicated,
    row_shards,
)
from srpo_jax.errors import UserError
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.lowering import lower
from srpo_jax.inference.engine.slots import Programs, Queue, Shape
from srpo_jax.inference.policy import sampling_model
from srpo_jax.models.attention.xla import OWN_BLOCK, own_length
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.inputs import EncodedPrompt, causal_row, no_patches, pad_rows
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.plan.compile_job import (
    compiler_options,
    devices_of,
    extent,
    out_of_memory,
    run_job,
)
from srpo_jax.plan.hlo_cost import read_stats

# Ids that end a branch, and that are never drawn: which ones changes nothing but constants.
EOS, BLOCKED = np.asarray([0, 1], np.int32), np.asarray([2], np.int32)
STEP = "jit(decode)/while"  # the loop of which a round is a token of every slot
OWN_LOOP = "branch_attention/while"  # over the blocks of the branches' own tokens


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The engine's programs for a mesh, traced. weights, state, inputs: bytes on a device."""

    prefill: jax.stages.Lowered
    decode: jax.stages.Lowered
    weights: int
    state: int
    inputs: int


def lower_programs(cfg: Config, config: ModelConfig, mesh: Mesh, shape: Shape) -> Lowered:
    """What an Engine of this shape would run on `mesh`."""
    dtype = jnp.dtype(cfg.model.dtype)
    model = sampling_model(cfg, config, mesh)
    sampling = Sampling(**arguments(Sampling, cfg.explore))
    programs = Programs(model, shape, sampling, EOS, BLOCKED, mesh)
    params = abstract_params(config, dtype)
    params = _placed(params, param_shardings(params, mesh))
    state = jax.eval_shape(programs.empty, params)
    state = _placed(state, programs.shardings(state))
    told = prefilled(config, shape, row_shards(mesh))
    told = _placed(told, jax.tree.map(lambda _: batch_sharding(mesh), told))
    enough = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return Lowered(
        prefill=lower(programs, programs.prefill, params, state, *told, donate=1),
        decode=lower(programs, programs.decode, params, state, enough, donate=1),
        weights=bytes_per_device(params),
        state=bytes_per_device(state),
        inputs=bytes_per_device(told),
    )


def prefilled(config: ModelConfig, shape: Shape, parts: int) -> tuple[Any, Queue, Any, Any]:
    """Abstract (inputs, queue, row, used) of Programs.prefill."""
    token = np.zeros(1, np.int32)
    prompt = EncodedPrompt(token, np.zeros((3, 1), np.int32), 1, token - 1, 0, no_patches(config))
    row = pad_rows([causal_row(prompt, token[:0])], tokens=shape.tokens, patches=shape.patches)
    inputs = {name: jax.ShapeDtypeStruct((parts, *x.shape[1:]), x.dtype) for name, x in row.items()}

    def branches(dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((parts, shape.branches, *more), dtype)

    ints = branches(jnp.int32)
    queue = Queue(ints, ints, branches(jnp.uint32, 2), branches(jnp.bool_), ints)
    return (
        inputs,
        queue,
        jax.ShapeDtypeStruct((parts,), jnp.int32),
        jax.ShapeDtypeStruct((parts,), jnp.bool_),
    )


def _placed(tree: Any, shardings: Any) -> Any:
    def place(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)


def compile_job(job: dict[str, Any]) -> dict[str, Any]:
    """{"status": "ok", ...} with memory in bytes per device, and for each program what hlo_cost.py
    counts: of `decode` for one token of every slot, with own caches that are full; or
    {"status": "oom" | "refused", "message": ...}. Other errors of the compiler are raised.
    """
    cfg, shape = stored_config(job["config"]), Shape(**job["shape"])
    began = time.monotonic()
    try:
        config = load_model_config(local_folder(cfg.model.path, weights=False), cfg.model.family)
        devices = devices_of(job["topology"], job["host_bounds"])
        mesh = make_mesh(*job["mesh"], devices=devices)
        lowered = lower_programs(cfg, config, mesh, shape)
    except UserError as error:
        return {"status": "refused", "message": str(error)}
    options = compiler_options(job["effort"])
    rounds = {OWN_LOOP: own_length(shape.new_tokens) // OWN_BLOCK}
    programs = {}
    for name, traced, step in (
        ("prefill", lowered.prefill, ""),
        ("decode", lowered.decode, STEP),
    ):
        try:
            compiled = traced.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            spent = time.monotonic() - began
            return {"status": "oom", **out_of_memory(str(error)), "seconds": spent}
        stats = read_stats(compiled.as_text() or "", dict(mesh.shape), step=step, lengths=rounds)
        memory = compiled.memory_analysis()
        assert memory  # XLA's compilers all have one
        programs[name] = dataclasses.asdict(stats)
        programs[name]["beside_bytes"] = int(
            memory.peak_memory_in_bytes - memory.argument_size_in_bytes
        )
        for collective in programs[name]["collectives"]:
            collective["extent"] = extent(mesh, collective["axes"])
    held = lowered.weights + lowered.state + lowered.inputs
    return {
        "status": "ok",
        "device_kind": mesh.devices.flat[0].device_kind,
        # Decoding does not read the vision tower, which lies there all the same.
        "peak_bytes": held + max(each["beside_bytes"] for each in programs.values()),
        "weight_bytes": lowered.weights,
        "state_bytes": lowered.state,
        "input_bytes": lowered.inputs,
        "programs": programs,
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    run_job(compile_job)
