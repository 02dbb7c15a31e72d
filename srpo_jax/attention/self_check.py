"""Before a run relies on an attention kernel, it is compared with the plain form on its device.

Kernels are checked in an interpreter and compiled ahead of time, and a compiler or a driver can
still be wrong. A wrong mask changes the loss and stops nothing, so it would never be noticed. The
idea is unsloth's, which compares shared prefixes with separate rows at their first use.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.attention import PLATFORM_OF, choose, platform_of, tree_attention
from srpo_jax.errors import UserError

LENGTH, TRUNK, BRANCH, SECOND = 1024, 400, 130, 150
LEAVES = (400, 290, 200)
# Largest difference over largest value. Rounding of bfloat16, and of float32 products on tensor
# cores, stays below 0.02; a key too many or too few makes it 0.1 and more.
MOST = 0.04


def self_check(
    impl: str, heads: int, kv_heads: int, size: int, dtype: jax.typing.DTypeLike
) -> dict[str, float] | None:
    """Compares values and gradients on one row of 1024 tokens; the errors, by name.

    impl: as `choose`, for the first device of this process; None where it stands for plain XLA
    code, which is not checked. heads, kv_heads, size: of the model. Takes some seconds, to compile.
    Errors: UserError when they differ by more than rounding.
    """
    device = jax.local_devices()[0]
    impl = choose(impl, platform_of(device), LENGTH)
    if impl not in PLATFORM_OF:
        return None
    rng = np.random.default_rng(0)
    shapes = [(1, LENGTH, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    with jax.default_device(device):
        *qkv, grad = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
        ends = jnp.asarray(_tree()[None])

        def run(impl, dtype):
            def pulled(q, k, v, grad):
                out, pull = jax.vjp(lambda *a: tree_attention(*a, ends, impl=impl), q, k, v)
                return out, *pull(grad)

            return jax.jit(pulled)(*(x.astype(dtype) for x in (*qkv, grad)))

        got = run(impl, dtype)
        with jax.default_matmul_precision("highest"):
            expected = run("xla", jnp.float32)
    errors = {}
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        errors[name] = float(np.abs(a - b).max() / np.abs(b).max())
    if not max(errors.values()) < MOST:  # also for NaN
        said = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        raise UserError(
            f"attention {impl!r} computes something else than 'xla' on this {device.device_kind} "
            f"(relative error of {said}): use --config.model.attention=block"
        )
    return errors


def _tree() -> np.ndarray:
    """subtree_end, int32 [LENGTH]: a trunk, branches that leave it at its end and before, deepest
    first; then a tree without branches; then padding."""
    ends = np.arange(LENGTH) + 1
    trunk = ends[:TRUNK] - 1
    ends[:TRUNK] = TRUNK + BRANCH * sum(leaves > trunk for leaves in LEAVES)
    for begin in TRUNK + BRANCH * np.arange(len(LEAVES)):
        ends[begin : begin + BRANCH] = begin + BRANCH
    begin = TRUNK + BRANCH * len(LEAVES)
    ends[begin : begin + SECOND] = begin + SECOND
    return ends.astype(np.int32)
