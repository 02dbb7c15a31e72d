"""What the TPU compiler makes of the memory settings: a small model for v5e, no TPU needed.

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

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed (no libtpu for this Python belongs to its jaxlib)",
    ),
]


def said(case: str) -> dict:
    env = dict(
        plain_environment(),
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(ROOT),  # also when not installed
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # libtpu takes a lock file even to compile
    )
    done = subprocess.run([sys.executable, __file__, case], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_remat_policies_take_less_memory_one_after_the_other():
    """Memory: offload < full < attention < none, dots between full and none. "attention" runs the
    kernel's forward pass as often as "none" does. "offload" has one input per layer on the host."""
    found = said("remat")
    device = {policy: facts["temp_bytes"] for policy, facts in found.items()}
    assert device["offload"] < device["full"] < device["attention"] < device["none"]
    assert device["full"] < device["dots"] < device["none"]
    forward = {
        policy: sum(n for name, n in facts["kernels"].items() if "forward" in name)
        for policy, facts in found.items()
    }
    assert forward["none"] == forward["attention"] == 8
    assert forward["full"] == forward["dots"] == forward["offload"] == 16
    inputs = 8 * 2048 * 512 * 2  # layers, tokens, width, bfloat16: one row per device
    assert found["offload"]["host_bytes"] >= inputs
    assert all(facts["host_bytes"] == 0 for name, facts in found.items() if name != "offload")


def test_traffic_does_not_grow_with_the_batch():
    """Over data and fsdp a device sends no more for 64 rows than for 16: tables and gradients.
    Left to the compiler, the lookup sends more with every row.
    The head's gradient is summed over replicas once, not once per chunk."""
    found = said("traffic")
    few, many, plain = (found[name] for name in ("16 rows", "64 rows", "64 rows, plain lookup"))
    assert many["rows"] <= 1.02 * few["rows"]
    assert many["rows"] < plain["rows"]
    assert few["data_bytes"] <= 1.1 * 4 * few["parameters"] / 8 + few["whole"]


def base(**text):
    from tests.support import multi_device_run as tiny

    config = tiny.tiny_config(tied=False)
    sizes = dict(
        vocab_size=64,
        hidden_size=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=1024,
        mrope_section=(8, 12, 12),
    )
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, **{**sizes, **text}),
        vision=dataclasses.replace(config.vision, depth=1, out_hidden_size=512),
    )


def mesh_of(topology: str, *sizes: int):
    from jax.experimental import topologies

    from srpo_jax.distributed.mesh import make_mesh

    described = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    return make_mesh(*sizes, devices=described.devices)


def make_setup(config, mesh, *, rows: int, tokens: int, targets: int, **options):
    """(model, abstract parameters, their shardings, abstract batch)"""
    import jax
    import jax.numpy as jnp

    from srpo_jax.distributed.sharding import make_constrain, param_shardings
    from srpo_jax.models.attention.dispatch import Attend
    from srpo_jax.models.policy_model import PolicyModel, abstract_params
    from srpo_jax.pack.packing import Budgets
    from tests.support import multi_device_run as tiny

    budgets = Budgets(tokens, targets, 128, 64, 32, 64)
    hooks = {"constrain": make_constrain(mesh), "attend": Attend(mesh=mesh)}
    model = PolicyModel(config, dtype=jnp.bfloat16, **hooks, **options)
    row = tiny.random_batch(tiny.tiny_config(), 0, rows=1, budgets=budgets)
    batch = {k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for k, x in row.items()}
    shape = (rows, budgets.patches, config.vision.patch_dim)
    batch["patches"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = abstract_params(config)
    return model, params, param_shardings(params, mesh), batch


def compile_gradient(model, mesh, params, shardings, batch):
    import jax

    from srpo_jax.distributed.sharding import batch_sharding
    from srpo_jax.train.train_step import make_target_logp

    target_logp = make_target_logp(model, mesh, shardings)
    gradient = jax.grad(lambda p, b: target_logp(p, b).sum())
    lowered = jax.jit(
        gradient, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=shardings
    ).lower(params, batch)
    return lowered.compile(compiler_options={"exec_time_optimization_effort": -1.0})


def remat() -> dict:
    from srpo_jax.models.blocks.decoder import POLICIES
    from srpo_jax.plan.hlo_cost import read_stats

    mesh, config, found = mesh_of("v5e:2x2", 1, 4, 1), base(), {}
    for policy in POLICIES:
        made = make_setup(config, mesh, rows=4, tokens=2048, targets=64, remat=policy)
        compiled = compile_gradient(made[0], mesh, *made[1:])
        memory = compiled.memory_analysis()
        found[policy] = {
            "peak_bytes": int(memory.peak_memory_in_bytes),
            "temp_bytes": int(memory.temp_size_in_bytes),
            "host_bytes": int(memory.host_temp_size_in_bytes),
            "kernels": dict(read_stats(compiled.as_text(), dict(mesh.shape)).kernels),
        }
        print(policy, found[policy], flush=True)
    return found


def traffic() -> dict:
    import jax

    from srpo_jax.models.policy_model import plain_lookup
    from srpo_jax.plan.hlo_cost import read_stats
    from srpo_jax.train import train_step as step

    mesh, found = mesh_of("v5e:4x4", 2, 4, 2), {}
    config = base(vocab_size=8192, num_layers=1)
    ours = step.make_lookup
    for name, rows, lookup in (
        ("16 rows", 16, ours),
        ("64 rows", 64, ours),
        ("64 rows, plain lookup", 64, lambda *_: plain_lookup),
    ):
        step.make_lookup = lookup
        model, params, shardings, batch = make_setup(
            config, mesh, rows=rows, tokens=256, targets=1536
        )
        compiled = compile_gradient(model, mesh, params, shardings, batch)
        stats = read_stats(compiled.as_text(), dict(mesh.shape))
        by_rows = [c for c in stats.collectives if "tensor" not in c.axes]
        sizes = [x.size for x in jax.tree.leaves(params)]
        found[name] = {
            "rows": sum(c.wire_bytes for c in by_rows),
            "data_bytes": sum(c.bytes for c in by_rows if c.axes == ("data",)),
            "parameters": sum(sizes),
            "whole": 4 * sum(n for n in sizes if n < 2**18),
            "list": [
                f"{c.kind} {c.axes} x{c.count}: {c.bytes:.0f} {c.largest[:2]}"
                for c in stats.collectives
            ],
        }
        print(name, json.dumps(found[name], indent=1), flush=True)
    return found


if __name__ == "__main__":
    print(json.dumps({"remat": remat, "traffic": traffic}[sys.argv[1]]()))
