"""Attention over a mesh: every device computes its rows and heads, with a list of its own.

Run as a script, on eight virtual CPU devices, this file prints the errors of each case as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

# name: mesh (data, fsdp, tensor), rows, heads, kv heads, impl; "tiles" are rows of one segment
CASES = {
    "rows and heads": ((2, 2, 2), 4, 4, 2, "block"),
    "kernel, rows and heads": ((2, 2, 2), 4, 4, 2, "pallas_tpu_interpret"),
    "fewer kv heads than devices": ((1, 2, 4), 2, 8, 2, "block"),
    "heads that do not divide": ((1, 2, 4), 2, 6, 2, "block"),
    "one row": ((2, 2, 2), 1, 4, 2, "block"),
    "tiles": ((2, 2, 2), 4, 4, 4, "block"),
}


@pytest.mark.multi_device
def test_meshes_give_what_one_device_gives():
    """Values and gradients to float32 rounding; rows have different trees, so different lists."""
    env = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="8",
        PJRT_NPROC="32",  # threads: on few cores the devices could wait for each other's
        PYTHONPATH=str(ROOT),
        XLA_FLAGS="--xla_backend_optimization_level=0",  # half the time to compile
    )
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said) == set(CASES)
    for name, case in said.items():
        assert max(case["errors"].values()) < 1e-5, (name, case)
        assert not case["collectives"], f"{name}: forward, nothing has to be communicated"


def run_case(name, shape, rows, heads, kv_heads, impl) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from srpo_jax.distributed.mesh import make_mesh
    from srpo_jax.distributed.sharding import ROW_AXES
    from srpo_jax.models.attention.dispatch import Attend
    from tests.support.masks import errors, random_qkv, reasoning_row, result_and_grads

    rng = np.random.default_rng(2)
    if tiles := name == "tiles":
        ids = np.arange(rows) > 0  # the first is padding
    else:
        ids = np.stack([reasoning_row(300, rng, padding=20 * row) for row in range(rows)])

    def function(attend):
        return attend.rows if tiles else attend.tree

    arrays = random_qkv(rows, 300, heads, kv_heads, 8)
    expected = result_and_grads(function(Attend("xla")), *arrays, jnp.asarray(ids))
    mesh = make_mesh(*shape)

    def place(x):  # as the model's activations lie
        row = ROW_AXES if rows % (shape[0] * shape[1]) == 0 else None
        head = "tensor" if x.ndim == 4 and x.shape[2] % shape[2] == 0 else None
        return jax.device_put(x, NamedSharding(mesh, P(row, *[None, head][: x.ndim - 1])))

    ours = function(Attend(impl, mesh))
    arrays, ids = [place(x) for x in arrays], place(ids)
    got = result_and_grads(ours, *arrays, ids)
    program = jax.jit(ours).lower(*arrays[:3], ids).compile().as_text()
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    return {"errors": errors(got, expected), "collectives": any(w in program for w in words)}


if __name__ == "__main__":
    print(json.dumps({name: run_case(name, *case) for name, case in CASES.items()}))
