"""The train step compiles ahead of time for a real TPU topology, on a machine without a TPU.

Whatever the TPU compiler refuses (an op, a sharding, too much memory) fails here and not on a pod.
Run as a script this file compiles one case and prints one JSON line; libtpu wants its own process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

TOPOLOGY, MESH = "v5e:2x4", dict(data=1, fsdp=4, tensor=2)

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed (no libtpu for this Python belongs to its jaxlib)",
    ),
]


@pytest.mark.parametrize("case", ["tiny", "wide"])
def test_train_step_compiles_for_v5e(case):
    """fsdp 4 x tensor 2 of a v5e:2x4, with 16 GB of memory each; `wide` in bfloat16 with remat."""
    env = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(pathlib.Path(__file__).parents[1]),  # also when not installed
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # libtpu takes a lock file even to compile
    )
    done = subprocess.run(
        [sys.executable, __file__, case], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kind"].startswith("TPU v5") and said["devices"] == 8
    assert 0 < said["peak_bytes"] < 16 * 2**30
    # float32 parameters and two moments, split over all eight: nothing large is left whole.
    assert said["argument_bytes"] < 1.3 * 12 * said["parameters"] / 8 + said["batch_bytes"] + 1e6


def compile_case(case: str) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    import multi_device_run as tiny
    from srpo_jax.mesh import make_mesh
    from srpo_jax.models.qwen2_5_vl import Qwen2_5_VL, abstract_params
    from srpo_jax.objective import Objective
    from srpo_jax.optim import make_optimizer
    from srpo_jax.sharding import make_constrain
    from srpo_jax.state import abstract_state, state_shardings
    from srpo_jax.step import make_train_step
    from srpo_jax.tree.packing import Budgets

    config, options, accumulate = tiny.tiny_config(), {}, 1
    budgets = tiny.BUDGETS
    if case == "wide":  # more than 1024 tokens: the chunked attention, too
        text = dataclasses.replace(
            config.text, vocab_size=8192, hidden_size=512, num_layers=8, num_heads=8,
            num_kv_heads=2, head_dim=64, intermediate_size=1024, mrope_section=(8, 12, 12),
            tie_word_embeddings=False,
        )  # fmt: skip
        vision = dataclasses.replace(
            config.vision, hidden_size=128, intermediate_size=256, depth=4, out_hidden_size=512
        )
        config = dataclasses.replace(config, text=text, vision=vision)
        options = {"dtype": jnp.bfloat16, "remat": "full"}
        accumulate = 2
        budgets = Budgets(2048, 1024, 128, 64, 32, 256)

    described = topologies.get_topology_desc(topology_name=TOPOLOGY, platform="tpu")
    mesh = make_mesh(**MESH, devices=described.devices)
    abstract = abstract_params(config)
    optimizer = make_optimizer(tiny.train_settings(freeze=("vision/.*",)), abstract)
    shape = abstract_state(abstract, optimizer, with_reference=False)
    places = state_shardings(shape, mesh)
    model = Qwen2_5_VL(config, constrain=make_constrain(mesh), **options)
    step = make_train_step(model, Objective(), optimizer, mesh, places, accumulate=accumulate)
    batch = jax.eval_shape(
        lambda: jax.tree.map(jnp.asarray, tiny.random_batch(config, 0, budgets=budgets))
    )
    # Least optimisation: the same collectives and memory within a few percent, far sooner.
    lowered = step.lower(shape, batch)
    compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": -1.0})
    memory = compiled.memory_analysis()
    sizes = [(x.size, x.size * x.dtype.itemsize) for x in jax.tree.leaves(abstract)]
    return {
        "kind": described.devices[0].device_kind,
        "devices": mesh.size,
        "peak_bytes": int(memory.peak_memory_in_bytes),
        "argument_bytes": int(memory.argument_size_in_bytes),
        "parameters": sum(size for size, _ in sizes),
        "batch_bytes": int(sum(np.prod(x.shape) * x.dtype.itemsize for x in batch.values())),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    print(json.dumps(compile_case(sys.argv[1])))
