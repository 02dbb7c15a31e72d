"""The GPU kernels compile for real chips, on a machine without one.

Rows of 8192 tokens, the 28 query and 4 kv heads of 128 of Qwen2.5-VL-7B. Run as a script this file
compiles one case and prints one JSON line (sizes in MiB); a compiler for another platform wants
its own process. `python tests/models/attention/test_attention_gpu_aot.py all` prints the table of
the docs.
"""

from __future__ import annotations

import json
import re
import sys
import time

import pytest

from tests.support import cuda_aot

# name: chip, kind, heads, kv heads, head size, dtype. Segments: the 7B's vision tower, one frame of
# 4096 patches; rows: 13 tiles of InternVL.
CASES = {
    "H100": ("NVIDIA H100 80GB HBM3", "tree", 28, 4, 128, "bfloat16"),
    "A100": ("NVIDIA A100-SXM4-80GB", "tree", 28, 4, 128, "bfloat16"),
    "L40S": ("NVIDIA L40S", "tree", 28, 4, 128, "bfloat16"),
    "H100 vision": ("NVIDIA H100 80GB HBM3", "segment", 16, 16, 80, "bfloat16"),
    "H100 tiles": ("NVIDIA H100 80GB HBM3", "row", 16, 16, 64, "bfloat16"),
    "A100 float32": ("NVIDIA A100-SXM4-80GB", "tree", 16, 2, 128, "float32"),
}

QUICK = ("H100", "L40S")  # one of each size of blocks; the others in `make test-all`

pytestmark = cuda_aot.MARKS


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_kernels_compile(case):
    """Forward, and both; tensor cores, registers and shared memory are the compiler's to refuse."""
    said = cuda_aot.said(__file__, case)
    assert said["kernels"] == [
        "tree_attention_dkv",
        "tree_attention_dq",
        "tree_attention_forward",
    ]
    # The temporaries of both passes are copies of inputs and results in another layout, and
    # numbers per query; one head's scores alone would be 128 MiB and more.
    assert said["temp"] < 1.5 * (said["arguments"] + said["results"]), said
    assert said["chip"] == CASES[case][0]


def compile_case(case: str) -> dict:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from srpo_jax.distributed.mesh import make_mesh
    from srpo_jax.models.attention.dispatch import Attend

    chip, kind, heads, kv_heads, size, dtype = CASES[case]
    mesh = make_mesh(1, 1, 1, devices=cuda_aot.devices(chip))
    attend = Attend(mesh=mesh)  # auto: the chooser's answer for this chip is a part of the test
    function = {"tree": attend.tree, "segment": attend.segments, "row": attend.rows}[kind]
    rows, length = {"tree": (1, 8192), "segment": (1, 4096), "row": (13, 1025)}[kind]

    def array(*shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    q, k = (array(rows, length, n, size, dtype=dtype) for n in (heads, kv_heads))
    ids = array(rows, dtype=bool) if kind == "row" else array(rows, length, dtype=jnp.int32)

    def both(q, k, v, ids, grad):
        return jax.vjp(lambda *a: function(*a, ids), q, k, v)[1](grad)

    begin = time.time()
    lowered = jax.jit(both).trace(q, k, k, ids, q).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    calls = [line for line in compiled.as_text().splitlines() if "__gpu$xla.gpu.triton" in line]
    named = (re.search(r"tree_attention_(forward|dq|dkv)", line) for line in calls)
    return {
        "case": case,
        "chip": mesh.devices.flat[0].device_kind,
        "kernels": sorted(found[0] for found in named if found),
        "arguments": memory.argument_size_in_bytes / 2**20,
        "results": memory.output_size_in_bytes / 2**20,
        "temp": memory.temp_size_in_bytes / 2**20,
        "peak": memory.peak_memory_in_bytes / 2**20,
        "seconds": round(time.time() - begin, 1),
    }


def print_table() -> None:
    """Markdown; one process per case, as the plugin is loaded once."""
    for case in CASES:
        said = cuda_aot.said(__file__, case)
        numbers = " | ".join(f"{said[n]:.0f}" for n in ("arguments", "results", "temp", "peak"))
        print(f"| {case} | {CASES[case][-1]} | {numbers} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "all":
        print_table()
    else:
        print(json.dumps(compile_case(sys.argv[1])))
