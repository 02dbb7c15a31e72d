"""srpo_jax/plan/hlo_cost.py on programs whose FLOPs and collectives are known."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.plan.hlo_cost import read_stats, replica_groups
from srpo_jax.plan.hlo_text import Module
from tests.support import ROOT, hlo_programs, plain_environment

SCRIPT = pathlib.Path(hlo_programs.__file__)
M, K, N = 64, 96, 32


def compiled(function, *shapes, dtype=jnp.float32):
    shaped = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function).lower(*shaped).compile()


def stats(function, *shapes):
    return read_stats(compiled(function, *shapes).as_text())


def test_products_are_counted_exactly():
    """A matrix product, one with batch and several contracted dimensions, and their gradients."""
    assert stats(lambda a, b: a @ b, (M, K), (K, N)).flops == 2 * M * K * N
    batched = stats(lambda a, b: jnp.einsum("bijk,bjkl->bil", a, b), (5, M, 3, K), (5, 3, K, N))
    assert batched.flops == 2 * 5 * M * 3 * K * N
    both = stats(
        lambda a, b: jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), (0, 1))(a, b), (M, K), (K, N)
    )
    assert both.flops == 3 * 2 * M * K * N


@pytest.mark.parametrize(
    "options",
    [
        dict(window_strides=(1, 1), padding="SAME"),
        dict(window_strides=(2, 3), padding=((2, 1), (0, 4))),
        dict(window_strides=(1, 1), padding=((3, 3), (2, 2)), lhs_dilation=(2, 3)),
        dict(window_strides=(1, 2), padding="VALID", rhs_dilation=(3, 2)),
        dict(window_strides=(1, 1), padding="SAME", feature_group_count=4),
    ],
    ids=["same", "strides", "base dilation", "kernel dilation", "groups"],
)
def test_convolutions_are_counted_as_xla_does(options):
    """Equal to XLA's own count where that is right: in a program without loops."""
    groups = options.get("feature_group_count", 1)
    program = compiled(
        lambda x, k: jax.lax.conv_general_dilated(x, k, **options),
        (2, 8, 20, 17),
        (12, 8 // groups, 3, 4),
    )
    ours = read_stats(program.as_text()).flops
    assert ours == pytest.approx(program.cost_analysis()["flops"], rel=1e-6)


def test_loops_are_multiplied_and_nested_ones_too():
    """A scan of 7 rounds with a scan of 5 in it, and a fori_loop from 2 to 11."""

    def nested(x, w):
        def inner(x, _):
            return x @ w, None

        def outer(x, _):
            return jax.lax.scan(inner, x @ w, None, length=5)[0], None

        return jax.lax.scan(outer, x, None, length=7)[0]

    assert stats(nested, (M, M), (M, M)).flops == 7 * (1 + 5) * 2 * M**3
    counted = stats(lambda x, w: jax.lax.fori_loop(2, 11, lambda i, x: x @ w, x), (M, M), (M, M))
    assert counted.flops == 9 * 2 * M**3
    assert counted.unknown_loops == ()


def test_trip_counts_are_found_without_xlas_annotation():
    """TPU programs carry no known_trip_count: start, bound and step come from the loop itself."""

    def nested(x, w):
        def outer(x, _):
            return jax.lax.fori_loop(3, 9, lambda i, x: x @ w, x), None

        return jax.lax.scan(outer, x, None, length=7)[0]

    text = compiled(nested, (M, M), (M, M)).as_text()
    assert "known_trip_count" in text
    assert read_stats(text.replace("known_trip_count", "nothing")).flops == 7 * 6 * 2 * M**3


def test_a_loop_of_unknown_length_is_counted_once_and_named():
    """The number of rounds is data."""
    found = stats(
        lambda n, x: jax.lax.fori_loop(0, n[0].astype(int), lambda i, x: x @ x, x), (1,), (M, M)
    )
    assert found.flops == 2 * M**3
    assert len(found.unknown_loops) == 1


def test_a_scanned_step_is_counted_as_its_unrolled_form():
    """Two layers with rematerialisation: the scan and its unrolled form differ by nothing."""

    def loss(unroll):
        @jax.checkpoint
        def layer(x, w):
            return jnp.tanh(x @ w[0]) @ w[1], None

        def run(x, w):
            return jnp.sum(jax.lax.scan(layer, x, w, unroll=unroll)[0] ** 2)

        return jax.grad(run, argnums=1)

    shapes = (M, K), (6, 2, K, K)
    rolled, flat = (stats(loss(unroll), *shapes) for unroll in (1, 6))
    assert rolled.flops == pytest.approx(flat.flops, rel=0.1)  # XLA drops a product at the ends
    assert rolled.flops > 5 * 6 * M * K * K


GROUPS = {
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}": [(0, 1), (2, 3), (4, 5), (6, 7)],
    "replica_groups={}": [tuple(range(8))],
    "replica_groups=[4,2]<=[8]": [(0, 1), (2, 3), (4, 5), (6, 7)],
    "replica_groups=[2,4]<=[4,2]T(1,0)": [(0, 2, 4, 6), (1, 3, 5, 7)],
    "replica_groups=mesh['a'=4,'b'=2] {'a'}": [(0, 2, 4, 6), (1, 3, 5, 7)],
    "replica_groups=mesh['a'=4,'b'=2] {'a','b'}": [tuple(range(8))],
    "replica_groups=mesh['a'=8,'b'=1], device_ids=([4,2]T(1,0)) {'a'}": [(0, 2, 4, 6, 1, 3, 5, 7)],
}


@pytest.mark.parametrize("text", GROUPS)
def test_every_spelling_of_replica_groups(text):
    assert replica_groups(f", channel_id=1, {text}, use_global_device_ids=true", 8) == GROUPS[text]


FUSED = """HloModule m, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,128]) -> bf16[16,128] {
  %input = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=3, \
replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = bf16[16,128]{1,0} dynamic-slice(%all-reduce.2, %zero, %zero), \
dynamic_slice_sizes={16,128}
}

ENTRY %main (x: bf16[64,128]) -> bf16[16,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %fusion = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_tpus_fused_reduce_scatter_is_one():
    """An all-reduce fused with the slice that is kept sends half of what an all-reduce sends."""
    (found,) = read_stats(FUSED, {"fsdp": 4, "tensor": 2}).collectives
    assert (found.kind, found.axes, found.group) == ("reduce-scatter", ("fsdp",), 4)
    assert found.bytes == 64 * 128 * 2 and found.wire_bytes == found.bytes * 3 / 4


def test_a_windowed_product_of_a_tpu_is_counted_right():
    """TPUs write batch dimensions as spatial ones with dilation: most positions meet nothing."""
    text = """HloModule m

ENTRY %main (a: f32[8,128,80], b: f32[8,128,80]) -> f32[8,128,128] {
  %a = f32[8,128,80]{2,1,0} parameter(0)
  %b = f32[8,128,80]{2,1,0} parameter(1)
  ROOT %c = f32[8,128,128]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, \
dim_labels=0bf_0oi->0bf
}
"""
    assert read_stats(text).flops == 2 * 8 * 128 * 128 * 80


def test_the_parser_reads_every_line_of_a_real_program():
    """Computations, roots, operands and called computations of a program with a loop."""
    text = compiled(
        lambda x: jax.lax.fori_loop(0, 4, lambda i, x: jnp.sin(x @ x), x), (8, 8)
    ).as_text()
    module = Module(text)
    assert module.entry in module.computations
    lines = sum(" = " in line for line in text.splitlines() if line.startswith("  "))
    assert sum(len(c.instructions) for c in module.computations.values()) == lines
    for computation in module.computations.values():
        assert computation.root in computation.instructions
        for instruction in computation.instructions.values():
            assert set(instruction.operands) <= set(computation.instructions), instruction
            assert set(instruction.called) <= set(module.computations), instruction


def known(where: str) -> dict:
    env = dict(
        plain_environment(),
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="8",
        PJRT_NPROC="32",
        PYTHONPATH=str(ROOT),
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, where], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("cpu", marks=pytest.mark.multi_device),
        pytest.param(
            "v5e:2x4",
            marks=[
                pytest.mark.tpu_aot,
                pytest.mark.skipif(
                    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
                ),
            ],
        ),
    ],
)
def test_collectives_over_a_mesh(where):
    """Kind, axis, group, count and bytes, also in a loop; on TPU whatever XLA makes of them."""
    found = known(where)
    rows, width, rounds = hlo_programs.ROWS, hlo_programs.WIDTH, hlo_programs.ROUNDS
    x, w = 4 * rows * width, 4 * width * width
    ring = 3 / 4

    gathered = found["gather in scan"]
    assert gathered["flops"] == rounds * 2 * (rows // 4) * width * width
    # XLA may move the gather out of the loop, and a TPU rounds to bfloat16 before it sends.
    assert total(gathered, "fsdp")[0] / (w * ring) in (rounds, 1, rounds / 2, 1 / 2)
    sent, kinds = total(found["all_reduce"], "tensor")
    assert sent == x and kinds <= {"all-reduce"}  # 2 (n-1)/n with n = 2
    assert found["all_reduce"]["flops"] == 2 * rows * width * width / 2
    sent, kinds = total(found["reduce_scatter"], "fsdp")
    assert (sent, kinds) in ((x * ring, {"reduce-scatter"}), (2 * x * ring, {"all-reduce"}))
    sent, kinds = total(found["permute"], "fsdp")
    assert sent == x / 4 and kinds == {"collective-permute"}
    sent, kinds = total(found["both axes"], "fsdp*tensor")
    assert sent == 2 * (x / 8) * 7 / 8 and kinds == {"all-reduce"}


def total(found: dict, axes: str) -> tuple[float, set[str]]:
    """(bytes sent, kinds); all collectives must be over these axes."""
    assert {"*".join(each["axes"]) for each in found["collectives"]} == {axes}, found
    sent = sum(each["wire_bytes"] for each in found["collectives"])
    return float(np.round(sent, 3)), {each["kind"] for each in found["collectives"]}
