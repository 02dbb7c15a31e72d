"""The train step compiles ahead of time for a real TPU topology, on a machine without a TPU.

Whatever the TPU compiler refuses (an op, a sharding, too much memory) fails here and not on a pod.
Run as a script this file compiles one case and prints one JSON line; libtpu wants its own process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.support import ROOT, plain_environment

# name: (topology of a slice, slices, (data, fsdp, tensor)); chips with 16 GB each
CASES = {
    "tiny": ("v5e:2x4", 1, (1, 4, 2)),
    "slices": ("v5e:2x2", 2, (2, 2, 2)),
    "wide": ("v5e:2x4", 1, (1, 4, 2)),  # bfloat16, remat, accumulation, chunked attention, own head
    "3B": ("v5e:4x4", 1, (1, 8, 2)),  # Qwen2.5-VL-3B, 8 rows of 8192 tokens and 4096 patches
}

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed (no libtpu for this Python belongs to its jaxlib)",
    ),
]


@pytest.mark.parametrize(
    "case",
    ["tiny", "wide", *(pytest.param(name, marks=pytest.mark.slow) for name in ("slices", "3B"))],
)
def test_train_step_compiles_for_v5e(case):
    """With fsdp and tensor: the compiler takes it, it fits, and no large array is left whole."""
    env = dict(
        plain_environment(),
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(ROOT),  # also when not installed
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # libtpu takes a lock file even to compile
    )
    done = subprocess.run(
        [sys.executable, __file__, case], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kind"].startswith("TPU v5")
    assert 0 < said["peak_bytes"] < 0.9 * 16 * 2**30
    # float32 parameters and two moments, split over all devices
    state_bytes = 12 * said["parameters"] / said["devices"]
    assert said["argument_bytes"] < 1.1 * state_bytes + said["batch_bytes"] + 1e6


def compile_case(case: str) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from srpo_jax.distributed.mesh import make_mesh, number_of_slices
    from srpo_jax.distributed.sharding import make_constrain
    from srpo_jax.models.attention.dispatch import Attend
    from srpo_jax.models.policy_model import PolicyModel, abstract_params
    from srpo_jax.pack.packing import Budgets
    from srpo_jax.train.losses.objective import Objective
    from srpo_jax.train.optimizer import make_optimizer
    from srpo_jax.train.train_state import abstract_state, state_shardings
    from srpo_jax.train.train_step import make_train_step
    from tests.distributed import test_sharding as real
    from tests.support import multi_device_run as tiny

    topology, slices, sizes = CASES[case]
    config, options, accumulate, budgets = tiny.tiny_config(), {}, 1, tiny.BUDGETS
    if case == "wide":
        text = dataclasses.replace(
            config.text,
            vocab_size=8192,
            hidden_size=512,
            num_layers=8,
            num_heads=8,
            num_kv_heads=2,
            head_dim=64,
            intermediate_size=1024,
            mrope_section=(8, 12, 12),
            tie_word_embeddings=False,
        )
        vision = dataclasses.replace(
            config.vision, hidden_size=128, intermediate_size=256, depth=4, out_hidden_size=512
        )
        config = dataclasses.replace(config, text=text, vision=vision)
        accumulate, budgets = 2, Budgets(2048, 1024, 128, 64, 32, 256)
    elif case == "3B":
        config, budgets = real.model("3B"), Budgets(8192, 7168, 256, 128, 128, 4096)
    if case != "tiny":
        options = {"dtype": jnp.bfloat16, "remat": "full"}

    described = topologies.get_topology_desc(topology, platform="tpu", num_slices=slices)
    assert number_of_slices(described.devices) == slices
    mesh = make_mesh(*sizes, devices=described.devices)
    abstract = abstract_params(config)
    optimizer = make_optimizer(tiny.train_settings(), abstract)
    shape = abstract_state(abstract, optimizer, with_reference=False)
    shardings = state_shardings(shape, mesh)
    hooks = {"constrain": make_constrain(mesh), "attend": Attend(mesh=mesh)}
    model = PolicyModel(config, **hooks, **options)
    step = make_train_step(model, Objective(), optimizer, mesh, shardings, accumulate=accumulate)
    rows = {
        name: (x.shape, x.dtype)
        for name, x in tiny.random_batch(tiny.tiny_config(), 0, budgets=budgets).items()
    }
    rows["patches"] = ((8, budgets.patches, config.vision.patch_dim), np.dtype(np.float32))
    batch = {name: jax.ShapeDtypeStruct(*facts) for name, facts in rows.items()}
    # Least optimisation: the same collectives and memory within a few percent, far sooner.
    lowered = step.lower(shape, batch)
    compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": -1.0})
    memory = compiled.memory_analysis()
    return {
        "kind": described.devices[0].device_kind,
        "devices": mesh.size,
        "peak_bytes": int(memory.peak_memory_in_bytes),
        "argument_bytes": int(memory.argument_size_in_bytes),
        "parameters": sum(x.size for x in jax.tree.leaves(abstract)),
        "batch_bytes": sum(x.size * x.dtype.itemsize for x in batch.values()),
    }


if __name__ == "__main__":
    print(json.dumps(compile_case(sys.argv[1])))
