"""The block implementations against plain XLA: values and all gradients, random trees."""

import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.errors import UserError
from srpo_jax.models.attention import block_list, pallas_gpu, tpu_sizes, xla
from srpo_jax.models.attention.dispatch import (
    Attend,
    choose,
    platform_of,
    segment_attention,
    tree_attention,
)
from tests.support.masks import errors, random_qkv, reasoning_row, result_and_grads, tree_mask

KERNELS = ["block", "pallas_tpu_interpret", "pallas_gpu_interpret"]
LENGTH = 600  # no multiple of 128


def tree_rows(padding=70):
    rng = np.random.default_rng(5)
    return np.stack([reasoning_row(LENGTH, rng), reasoning_row(LENGTH, rng, padding)])


def segment_rows():
    """Windows of 64, edge windows, one long frame; padding at the end of the second row."""
    windows = np.repeat(np.arange(20), [64] * 6 + [48] * 2 + [300 // 12] * 12)[:LENGTH]
    windows = np.pad(windows, (0, LENGTH - len(windows)), constant_values=20)
    frames = np.repeat([0, 1, -1], [400, 50, 150])
    return np.stack([windows, frames]).astype(np.int32)


def compare(function, reference, ids, impl, *, heads, kv_heads, size, dtype=jnp.float32):
    arrays = random_qkv(len(ids), LENGTH, heads, kv_heads, size, dtype=dtype)
    ids = jnp.asarray(ids)
    got = result_and_grads(lambda *a: function(*a, impl=impl), *arrays, ids)
    assert all(x.dtype == dtype for x in got)
    wide = [x.astype(jnp.float32) for x in arrays]
    return errors(got, result_and_grads(reference, *wide, ids))


def test_the_random_trees_reach_every_path_of_a_kernel():
    """Skipped, partly visible and fully visible blocks, several trees, padding."""
    ends = tree_rows()
    roots = [np.flatnonzero(tree_mask(e).sum(1) == 1) for e in ends]
    assert all(len(r) > 1 for r in roots)
    bounds = block_list.pad_bounds(block_list.tree_bounds(jnp.asarray(ends)), 640)
    entries, count = block_list.list_blocks(bounds, 128, 128, causal=True)
    full = int(block_list.has_flag(entries[:count], block_list.FULL).sum())
    assert 0 < full < count < entries.size == 2 * 15


@pytest.mark.parametrize("impl", KERNELS)
def test_tree_values_and_gradients(impl, monkeypatch):
    """Seven query heads to a kv head, two rows, any length: equal to float32 rounding."""
    monkeypatch.setitem(tpu_sizes.SIZES, "cpu", tpu_sizes.KernelSizes(128, 128))
    found = compare(
        tree_attention, xla.tree_attention, tree_rows(), impl, heads=14, kv_heads=2, size=64
    )
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("q, kv", [(256, 128), (128, 256)])
def test_blocks_of_queries_and_keys_may_differ(q, kv, monkeypatch):
    """In the kernel; the XLA loop has square blocks."""
    monkeypatch.setitem(tpu_sizes.SIZES, "cpu", tpu_sizes.KernelSizes(q, kv))
    impl = "pallas_tpu_interpret"
    found = compare(
        tree_attention, xla.tree_attention, tree_rows(), impl, heads=4, kv_heads=2, size=16
    )
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("impl", KERNELS)
def test_segment_values_and_gradients(impl):
    """Windows, frames and padding; a head size that is no power of two."""
    found = compare(
        segment_attention, xla.segment_attention, segment_rows(), impl, heads=2, kv_heads=2, size=40
    )
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("impl", KERNELS)
def test_bfloat16_sums_in_float32(impl):
    """bfloat16 in, errors of its rounding (2^-8) and not of its sums, against float32."""
    found = compare(
        tree_attention,
        xla.tree_attention,
        tree_rows(),
        impl,
        heads=2,
        kv_heads=1,
        size=128,
        dtype=jnp.bfloat16,
    )
    assert max(found.values()) < 0.012, found


@pytest.mark.parametrize("impl", KERNELS)
def test_queries_that_see_nothing_are_zero(impl):
    """Also under a malformed subtree_end: no NaN in values or gradients."""
    arrays = random_qkv(1, 130, 2, 1, 8)
    ends = jnp.zeros((1, 130), jnp.int32)
    got = result_and_grads(lambda *a: tree_attention(*a, impl=impl), *arrays, ends)
    assert all(np.all(np.asarray(x) == 0) for x in got)


@pytest.mark.parametrize("impl", KERNELS)
def test_another_tree_is_no_other_program(impl):
    """The list is data: one compilation serves every tree."""
    q, k, v, _ = random_qkv(1, 300, 2, 1, 8)
    run = jax.jit(lambda ends: tree_attention(q, k, v, ends, impl=impl))
    rng = np.random.default_rng(0)
    for _ in range(3):
        ends = jnp.asarray(reasoning_row(300, rng)[None])
        np.testing.assert_allclose(run(ends), xla.tree_attention(q, k, v, ends), atol=1e-5)
    assert run._cache_size() == 1


@pytest.mark.parametrize("impl", KERNELS)
def test_memory_is_linear_in_the_row(impl):
    """Forward and backward, no array is larger than q."""
    q = jax.ShapeDtypeStruct((1, 4096, 4, 16), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 4096, 2, 16), jnp.float32)
    ends = jax.ShapeDtypeStruct((1, 4096), jnp.int32)

    def loss(q, k, v, ends):
        trees = tree_attention(q, k, v, ends, impl=impl)
        return trees.sum() + segment_attention(q, k, v, ends, impl=impl).sum()

    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k, ends))
    shapes = re.findall(r"[a-z]\d+\[([\d,]+)\]", program)
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 4096 * 4 * 16


def test_auto_follows_platform_and_length():
    """Short rows are dense; long ones skip blocks, on TPU in the kernel."""
    assert choose("auto", "cpu", 100) == choose("auto", "tpu", 100) == "xla"
    assert choose("auto", "tpu", 8192) == "pallas_tpu"
    assert choose("auto", "gpu", 8192) == "pallas_gpu"
    assert choose("auto", "gpu", 65536) == "block"  # more blocks than can be listed
    assert choose("auto", "cpu", 8192) == choose("auto", "other gpu", 8192) == "block"
    assert choose("xla", "tpu", 8192) == "xla"


@pytest.mark.parametrize(
    "capability, expected", [("7.5", "other gpu"), ("8.6", "gpu"), ("gfx942", "other gpu")]
)
def test_gpus_without_a_kernel_are_told_apart(capability, expected):
    """Turing and AMD take the plain loop."""
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    assert platform_of(device) == expected


def test_small_gpus_get_small_blocks():
    """99 KiB of shared memory hold no 128 x 64 with heads of 128; heads of 64 fit everywhere."""
    large, small = (128, 64, 8), (64, 32, 4)
    sizes = [pallas_gpu.sizes_for(128, jnp.bfloat16, c) for c in ("8.0", "9.0", "8.9", "12.0")]
    assert sizes == [large, large, small, small]
    assert pallas_gpu.sizes_for(80, jnp.bfloat16, "8.9") == small  # padded to 128
    assert pallas_gpu.sizes_for(64, jnp.bfloat16, "8.9") == large
    with pytest.raises(UserError, match="512 bytes at most, not 1024"):
        pallas_gpu.sizes_for(256, jnp.float32, "9.0")


@pytest.mark.parametrize("impl, platform", [("pallas_tpu", "gpu"), ("flash", "cpu")])
def test_what_cannot_run_is_refused(impl, platform):
    """By name and with what to do; never silently replaced."""
    with pytest.raises(UserError, match=impl):
        choose(impl, platform, 8192)


def test_rows_too_long_for_the_core_are_refused():
    """The backward kernel keeps dk and dv of a row in VMEM: v5p holds 32768 tokens, not 65536."""
    sizes = tpu_sizes.sizes_for("TPU v5", 65536)
    for length, fits in ((32768, True), (65536, False)):
        q = jax.ShapeDtypeStruct((1, 4, 7, length, 128), jnp.bfloat16)
        if fits:
            tpu_sizes.compiler_params(q, sizes, whole_rows=2)
            continue
        with pytest.raises(UserError, match="VMEM for rows of 65536 tokens"):
            tpu_sizes.compiler_params(q, sizes, whole_rows=2)


def test_the_hook_is_the_function():
    """A model asks `Attend`: it passes on its implementation and its mesh."""
    q = jax.ShapeDtypeStruct((1, 600, 2, 8), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 600), jnp.int32)
    attend = Attend("block", make_mesh(devices=jax.devices()[:1]))
    for hook, function in ((attend.tree, tree_attention), (attend.segments, segment_attention)):
        own = functools.partial(function, impl=attend.impl, mesh=attend.mesh)
        ours = str(jax.make_jaxpr(hook)(q, q, q, ids))
        assert ours == str(jax.make_jaxpr(own)(q, q, q, ids))
        assert "shard_map" in ours and "while" in ours
