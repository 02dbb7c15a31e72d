"""The whole train step compiles ahead of time for NVIDIA GPUs, on a machine without one.

Qwen2.5-VL, everything trained, rows of 8192 tokens. Run as a script this file compiles one case and
prints one JSON line; a compiler for another platform wants its own process.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile

import pytest

from tests.support import ROOT, cuda_aot

GIB = 2**30
# name: size, chip, chips (fsdp), rows, dtype of the parameters, GiB of the chip
CASES = {
    "3B on one H200": ("3b", "NVIDIA H200", 1, 1, "bfloat16", 131),
    "7B on one H200": ("7b", "NVIDIA H200", 1, 1, "bfloat16", 131),
    "7B on eight H100": ("7b", "NVIDIA H100 80GB HBM3", 8, 8, "float32", 79),
}

pytestmark = cuda_aot.MARKS


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_train_step_compiles_and_fits(case):
    """With our kernels for the decoder and the picture tower, in 95 % of the chip's memory."""
    said = cuda_aot.said(__file__, case)
    # Decoder: forward, again in the backward pass, dq, dkv; the tower's layers the same. The 7B and
    # 3B towers' windows and whole frames differ in data only.
    assert said["kernels"] == 8
    assert said["arguments_gib"] < said["peak_gib"] < 0.95 * CASES[case][-1], said
    assert said["start_gib"] < said["peak_gib"], said


def compile_case(case: str) -> dict:
    import jax
    import jax.numpy as jnp

    from srpo_jax.config.load import load_config
    from srpo_jax.distributed.mesh import make_mesh
    from srpo_jax.models.policy_model import abstract_params
    from srpo_jax.models.registry import load_model_config
    from srpo_jax.pack.packing import Budgets
    from srpo_jax.plan.compile_job import describe_state, lower_step
    from srpo_jax.train.train_state import initializer, state_shardings

    size, chip, chips, rows, dtype, _ = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        released = ROOT / "tests" / "released" / f"qwen2_5_vl_{size}.json"
        (pathlib.Path(folder) / "config.json").write_text(released.read_text())
        overrides = {
            "model.path": folder,
            "mesh.fsdp": chips,
            "pack.rows": rows,
            "train.param_dtype": dtype,
        }
        overrides = [f"--config.{name}={value}" for name, value in overrides.items()]
        cfg = load_config(str(ROOT / "configs" / "pod.py"), overrides, ("arbiter.kind",))
        config = load_model_config(folder)
    mesh = make_mesh(**dataclasses.asdict(cfg.mesh), devices=cuda_aot.devices(chip, chips))
    # One question of a large picture and six steps; see docs/planning.md.
    budgets = Budgets(8192, 7168, 256, 128, 128, 4096)
    compiled = lower_step(cfg, config, mesh, budgets).compile()
    memory = compiled.memory_analysis()
    # Making the state holds the weights besides what becomes the state.
    optimizer, _, state = describe_state(cfg, config)
    shardings = state_shardings(state, mesh)
    weights = abstract_params(config, jnp.float32)
    make = initializer(optimizer, shardings, with_reference=False, dtype=jnp.dtype(dtype))
    weights = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        weights,
        shardings.params,
    )
    start = make.lower(weights).compile().memory_analysis()
    return {
        "case": case,
        "chip": mesh.devices.flat[0].device_kind,
        "kernels": compiled.as_text().count('custom_call_target="__gpu$xla.gpu.triton"'),
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "peak_gib": memory.peak_memory_in_bytes / GIB,
        "start_gib": start.peak_memory_in_bytes / GIB,
    }


if __name__ == "__main__":
    print(json.dumps(compile_case(sys.argv[1])))
