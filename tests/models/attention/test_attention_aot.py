"""The TPU kernels compile ahead of time for real chips, on a machine without one.

Rows of 8192 tokens, the 28 query and 4 kv heads of 128 of Qwen2.5-VL-7B, bfloat16. Run as a script
this file compiles one case and prints one JSON line (sizes in MiB); libtpu wants its own process.
`python tests/models/attention/test_attention_aot.py all` prints the table of docs/performance.md.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time

import pytest

from tests.support import ROOT, plain_environment

# name: topology, (data, fsdp, tensor), rows, kind, peak MiB forward and forward + backward. Kinds:
# the 7B's trees, its vision tower (16 heads of 80, one frame of 4096 patches), and 13 tiles of
# InternVL (16 heads of 64).
CASES = {
    "v5e": ("v5e:2x2", (1, 1, 1), 1, "tree", (145, 234)),
    "v5p": ("v5p:2x2x1", (1, 1, 1), 1, "tree", (145, 234)),
    "v6e": ("v6e:2x2", (1, 1, 1), 1, "tree", (145, 234)),
    "tpu7x": ("tpu7x:2x2x1", (1, 1, 1), 1, "tree", (145, 234)),
    "v5e 1x4x2": ("v5e:2x4", (1, 4, 2), 4, "tree", (73, 117)),
    "v5e 1x1x8": ("v5e:2x4", (1, 1, 8), 1, "tree", (44, 76)),  # more devices than kv heads
    "v5e vision": ("v5e:2x2", (1, 1, 1), 1, "segment", (104, 214)),
    "v5e tiles": ("v5e:2x2", (1, 1, 1), 13, "row", (351, 731)),
}

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed (no libtpu for this Python belongs to its jaxlib)",
    ),
]


QUICK = ("v6e", "v5e 1x4x2", "v5e vision", "v5e tiles")  # each kind, and over a mesh


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_kernels_compile(case):
    """Forward, and forward and backward: kernels and not XLA, in the memory of their inputs,
    results and a copy of the smaller ones. One head's scores in bfloat16 would be 128 MiB."""
    root = str(ROOT)
    env = dict(
        plain_environment(),
        JAX_PLATFORMS="cpu",
        PYTHONPATH=root,
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    done = subprocess.run(
        [sys.executable, __file__, case], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    forward, both = json.loads(done.stdout.splitlines()[-1])
    assert (forward["kernels"], both["kernels"]) == (1, 2)
    for said, known in zip((forward, both), CASES[case][-1], strict=True):
        # Full effort (the only one from jax 0.11 on) takes up to 1.65 of least effort's memory.
        assert said["peak"] < (1.05 if said["least_effort"] else 1.8) * known, said


def compile_case(case: str) -> list[dict]:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from srpo_jax.models.attention import tpu_sizes
    from srpo_jax.models.attention.dispatch import Attend

    # The kernels hardly differ, the program around them compiles sooner. jax 0.12's libtpu no
    # longer takes the option.
    fast = jax.__version_info__ < (0, 11)
    options = {"exec_time_optimization_effort": -1.0} if fast else None
    from srpo_jax.distributed.mesh import make_mesh
    from srpo_jax.distributed.sharding import ROW_AXES

    topology, sizes, rows, kind, _ = CASES[case]
    length, heads, kv_heads, size = {
        "tree": (8192, 28, 4, 128),
        "segment": (4096, 16, 16, 80),
        "row": (1025, 16, 16, 64),
    }[kind]
    if sizes[2] > 4:
        heads = 32  # 28 do not divide over 8
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    mesh = make_mesh(*sizes, devices=devices[: sizes[0] * sizes[1] * sizes[2]])
    attend = Attend(mesh=mesh)
    function = {"tree": attend.tree, "segment": attend.segments, "row": attend.rows}[kind]
    sizes_for = tpu_sizes.row_sizes_for if kind == "row" else tpu_sizes.sizes_for
    split = "tensor" if kv_heads % sizes[2] == 0 else None

    def array(n, axis):
        where = NamedSharding(mesh, P(ROW_AXES, None, axis))
        return jax.ShapeDtypeStruct((rows, length, n, size), jnp.bfloat16, sharding=where)

    q, k = array(heads, "tensor"), array(kv_heads, split)
    shape, dtype = ((rows,), jnp.bool_) if kind == "row" else ((rows, length), jnp.int32)
    ids = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(ROW_AXES)))

    def both(q, k, v, ids, grad):
        return jax.vjp(lambda *a: function(*a, ids), q, k, v)[1](grad)

    found = []
    for what, program, inputs in (("forward", function, ()), ("both", both, (q,))):
        begin = time.time()
        lowered = jax.jit(program).lower(q, k, k, ids, *inputs)
        compiled = lowered.compile(compiler_options=options)
        memory = compiled.memory_analysis()
        seconds = time.time() - begin
        found.append(
            {
                "case": case,
                "kind": devices[0].device_kind,
                "what": what,
                "blocks": sizes_for(devices[0].device_kind, length)[:2],
                "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
                "arguments": memory.argument_size_in_bytes / 2**20,
                "results": memory.output_size_in_bytes / 2**20,
                "temp": memory.temp_size_in_bytes / 2**20,
                "peak": memory.peak_memory_in_bytes / 2**20,
                "seconds": seconds,
                "least_effort": fast,
            }
        )
    return found


def print_table() -> None:
    """Markdown; one process per case would be cleaner, but one after another works."""
    print(f"libtpu {importlib.metadata.version('libtpu')}")
    for case in CASES:
        for f in compile_case(case):
            names = ("arguments", "results", "temp", "peak")
            numbers = " | ".join(f"{f[name]:.0f}" for name in names)
            blocks = "x".join(str(b) for b in f["blocks"])
            print(f"| {case} | {blocks} | {f['what']} | {numbers} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "all":
        print_table()
    else:
        print(json.dumps(compile_case(sys.argv[1])))
