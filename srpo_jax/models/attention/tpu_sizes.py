"""Block sizes of the TPU kernels, the memory they need in the core, and what they cost."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from srpo_jax.errors import UserError
from srpo_jax.models.attention.block_list import BlockList


class KernelSizes(NamedTuple):
    """Scores of a grid step, kv x q for each of G heads (multiples of 128), and VMEM bytes."""

    q: int
    kv: int
    vmem: int = 16 << 20


# By device_kind. VMEM is the core's own (jax's tpu_info) less a few MiB. The blocks are reasoned,
# not tuned: small ones skip more (a tree of six steps and eight branches computes 2.2x the scores
# it needs with 256, 3.3x with 512), and a step must outweigh its fixed cost: 7 heads of 256 x 256
# are 0.23 GFLOP forward, 1 us where a core does 230 TFLOP/s and too little where it does 900.
SIZES = {
    "TPU v4": KernelSizes(256, 256, 15 << 20),
    "TPU v5 lite": KernelSizes(256, 256, 124 << 20),
    "TPU v5": KernelSizes(256, 256, 60 << 20),
    "TPU v6 lite": KernelSizes(512, 512, 124 << 20),
    "TPU7x": KernelSizes(512, 512, 60 << 20),
}

STEP_COST = 3  # of a grid step, in units of 128 x 128 scores


def sizes_for(device_kind: str, length: int) -> KernelSizes:
    """The table's sizes for a TPU, cautious ones for an unknown one; no longer than the row."""
    sizes = SIZES.get(device_kind, KernelSizes(256, 256))
    most = -(-length // 128) * 128
    return sizes._replace(q=min(sizes.q, most), kv=min(sizes.kv, most))


def row_sizes_for(device_kind: str, length: int) -> KernelSizes:
    """For rows that are one segment, one head per step: the square blocks that should cost least.

    In units of 128 x 128 scores (about 0.1 us) a step costs its scores and STEP_COST, and blocks
    that do not divide the row compute padding. 577 tokens: 640 (v4: 384), 729: 384, 1024: 512,
    1025: 384. Reasoned, not tuned.
    """
    sizes = sizes_for(device_kind, length)
    units = -(-length // 128)
    most = 4 if sizes.vmem < 20 << 20 else 5  # 640 x 640 scores need 16 MiB, see compiler_params
    side = min(range(1, most + 1), key=lambda n: (-(-units // n)) ** 2 * (n * n + STEP_COST))
    return sizes._replace(q=128 * side, kv=128 * side)


def compiler_params(q: jax.Array, sizes: KernelSizes, whole_rows: int) -> pltpu.CompilerParams:
    """Asks for the VMEM that the kernel needs, by a bound that was compared with the compiler's.

    Errors: UserError when that is more than the core has (in the backward kernel, whose dk and dv
    of a whole row stay there).
    """
    groups, length, size = q.shape[2:]
    lanes, width = -(-size // 128) * 128, q.dtype.itemsize
    heads = groups * sizes.q * lanes
    need = whole_rows * 4 * length * lanes  # dk and dv
    need += 2 * width * (3 * heads + 2 * sizes.kv * lanes)  # q, out or dq, grad, k, v: two of each
    need += 4 * heads + 10 * 4 * sizes.q * sizes.kv  # a float32 sum, and scores of heads in flight
    if need > sizes.vmem:
        raise UserError(
            f"the TPU attention kernel needs {need >> 20} MiB of VMEM for rows of {length} tokens, "
            f"and the core has {sizes.vmem >> 20}: use shorter rows, or attention 'block'"
        )
    # Chips with two cores split the kv heads; the list is in order.
    order = ("parallel", "arbitrary")
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=max(need, 16 << 20))


def cost(q: jax.Array, listed: BlockList, sizes: KernelSizes, *, backward: bool) -> pl.CostEstimate:
    """An upper bound, with every entry of the list used: how many are is known only at run time.

    2 matrix products a block forward, 5 backward. Bytes: q and out, or q, grad, dq and float32 dk
    and dv, once; k and v once per entry; the numbers per query and the masks are left out.
    """
    rows, kv_heads, groups, length, size = q.shape
    width = q.dtype.itemsize
    steps = kv_heads * listed.entries.size
    scores = steps * groups * sizes.q * sizes.kv
    per_head = rows * kv_heads * length * size
    once = per_head * (3 * groups * width + 8) if backward else per_head * 2 * groups * width
    return pl.CostEstimate(
        flops=2 * (5 if backward else 2) * scores * size,
        transcendentals=scores,
        bytes_accessed=once + 2 * steps * sizes.kv * size * width,
    )
