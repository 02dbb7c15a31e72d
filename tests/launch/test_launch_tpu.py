"""What launch sets for TPU, tried with the TPU compiler: flag presets, and meshes over slices.

Run as a script this file compiles a small program; libtpu reads its flags once per process.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from srpo_jax.distributed.xla_flags import PRESETS, libtpu_init_args
from srpo_jax.errors import UserError
from tests.support import ROOT, plain_environment

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed (no libtpu for this Python belongs to its jaxlib)",
    ),
]


def compile_with(flags: str) -> subprocess.CompletedProcess:
    env = dict(
        plain_environment(),
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(ROOT),
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # libtpu takes a lock file even to compile
        LIBTPU_INIT_ARGS=flags,
    )
    return subprocess.run(
        [sys.executable, __file__], env=env, capture_output=True, text=True, timeout=300
    )


def test_libtpu_takes_every_preset():
    """Each flag is known and has a legal value; libtpu names the one that is not."""
    flags = libtpu_init_args(",".join(PRESETS))
    assert flags.count("--") == len({f for preset in PRESETS.values() for f in preset.flags})
    done = compile_with(flags)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--xla_tpu_make_it_fast=true", "Unknown command line flag 'xla_tpu_make_it_fast'"),
        ("--xla_tpu_scoped_vmem_limit_kib=much", "Illegal value 'much'"),
    ],
)
def test_libtpu_refuses_what_it_does_not_know(flag, said):
    """The check above can fail: an invented flag, or value, ends the process at its start."""
    done = compile_with(flag)
    assert done.returncode != 0 and said in done.stderr and "compiled" not in done.stdout


def run() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from srpo_jax.distributed.mesh import make_mesh
    from srpo_jax.distributed.sharding import ROW_AXES

    def devices(topology: str, **options):
        return topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **options
        ).devices

    mesh = make_mesh(1, 4, 1, devices("v5e:2x2"))
    rows, weights = NamedSharding(mesh, P(ROW_AXES)), NamedSharding(mesh, P("fsdp"))

    def step(w, x):
        gradient = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) @ w.T).astype(jnp.float32))(w)
        return jax.lax.with_sharding_constraint(w - gradient, weights)

    w = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=weights)
    x = jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16, sharding=rows)
    assert "all-gather" in jax.jit(step).lower(w, x).compile().as_text()

    # mesh.data is over the slices, fsdp and tensor are inside one, whatever order they come in.
    two = devices("v5e:2x4", num_slices=2)
    for shape in ((2, 4, 2), (4, 2, 2), (2, -1, 1)):
        grid = make_mesh(*shape, [*two[8:], *two[:8]]).devices
        slices = np.vectorize(lambda device: device.slice_index)(grid)
        halves = np.split(slices, 2)
        assert (halves[0] == 0).all() and (halves[1] == 1).all(), slices.tolist()
    try:
        make_mesh(1, 16, 1, two)
    except UserError as error:
        assert "no multiple of the 2 TPU slices" in str(error)
    else:
        raise AssertionError("fsdp over two slices was taken")
    print("compiled")


if __name__ == "__main__":
    run()
