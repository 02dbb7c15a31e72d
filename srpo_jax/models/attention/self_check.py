"""Before a run relies on an attention kernel, it is compared with the plain form on its device.

Kernels are checked in an interpreter and compiled ahead of time, and a compiler or a driver can
still be wrong. A wrong mask changes the loss and stops nothing, so it would never be noticed. The
idea is unsloth's, which compares shared prefixes with separate rows at their first use.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.attention.dispatch import (
    PLATFORM_OF,
    choose,
    platform_of,
    segment_attention,
    tree_attention,
)

LENGTH, TRUNK, BRANCH, SECOND = 1024, 400, 130, 150
LEAVES = (400, 290, 200)
ROWS, KV_HEADS = 2, 2
# The largest error of a query's result or gradient, or a key's gradients, against the plain form in
# float32. bfloat16 in the interpreter: 0.006, dq 0.025. One key too many or too few for one branch:
# dv 0.05 and more (measured with one, two and seven query heads per kv head).
MOST = {"out": 0.015, "dq": 0.05, "dk": 0.015, "dv": 0.015}


def self_check(
    impl: str, groups: int, size: int, picture_size: int, dtype: jax.typing.DTypeLike
) -> dict[str, float]:
    """Compares values and gradients on rows of 1024; the errors, by name.

    Trees: two rows, two kv heads with `groups` query heads each, heads of `size`. Segments, as the
    pictures' towers have them: two rows, two heads of `picture_size`.
    impl: as `choose`, for the first device of this process; empty result where it stands for plain
    XLA code, which is not checked. Takes some seconds, to compile.
    Errors: UserError when they differ by more than rounding, or when the compiler fails.
    """
    device = jax.local_devices()[0]
    impl = choose(impl, platform_of(device), LENGTH)
    if impl not in PLATFORM_OF:
        return {}
    frames = np.repeat([0, 1, -1], [600, 300, LENGTH - 900])
    windows = np.minimum(np.arange(LENGTH) // 64, 14)
    cases = {
        "tree": (tree_attention, np.stack([_tree(), _chain()]), KV_HEADS * groups, size),
        "segment": (segment_attention, np.stack([frames, windows]), KV_HEADS, picture_size),
    }
    errors: dict[str, float] = {}
    with jax.default_device(device):
        for kind, (function, ints, heads, width) in cases.items():
            inputs = _inputs(heads, width, dtype)
            ints = jnp.asarray(ints, jnp.int32)
            try:
                got = _result_and_gradients(function, inputs, ints, impl)
            except jax.errors.JaxRuntimeError as error:
                said = one_line(error)[:200]
                raise UserError(
                    f"attention {impl!r} does not compile or run on this {device.device_kind} "
                    f"({said}): use --config.model.attention=block"
                ) from None
            with jax.default_matmul_precision("highest"):
                wide = [x.astype(jnp.float32) for x in inputs]
                expected = _result_and_gradients(function, wide, ints, "xla")
            for name, a, b in zip(MOST, got, expected, strict=True):
                errors[f"{kind} {name}"] = _largest(a, b, least=1.0 if name == "dq" else 0.1)
    if not all(error < MOST[name.split()[1]] for name, error in errors.items()):  # also for NaN
        said = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        raise UserError(
            f"attention {impl!r} computes something else than 'xla' on this {device.device_kind} "
            f"(relative error of {said}): use --config.model.attention=block"
        )
    return errors


def _inputs(heads: int, size: int, dtype: jax.typing.DTypeLike) -> list[jax.Array]:
    """q, k, v and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = [(ROWS, LENGTH, n, size) for n in (heads, KV_HEADS, KV_HEADS, heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def _result_and_gradients(function, inputs: list[jax.Array], ints: jax.Array, impl: str):
    def pulled(q, k, v, grad):
        out, pull = jax.vjp(lambda *qkv: function(*qkv, ints, impl=impl), q, k, v)
        return out, *pull(grad)

    return jax.jit(pulled)(*inputs)


def _largest(a: jax.Array, b: jax.Array, least: float) -> float:
    """Over all tokens and heads: norm of the difference over norm of b, which counts as `least`
    times the mean norm where it is smaller. The dq of a query with few keys is a difference of
    nearly equal numbers, so all of dq is measured against its mean."""
    found, wanted = (np.asarray(x, np.float64) for x in (a, b))
    norms = np.linalg.norm(wanted, axis=-1)
    return float(
        (np.linalg.norm(found - wanted, axis=-1) / np.maximum(norms, least * norms.mean())).max()
    )


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


def _chain() -> np.ndarray:
    """subtree_end, int32 [LENGTH], of a tree without branches: another mask in the other row."""
    return np.full(LENGTH, LENGTH, np.int32)
