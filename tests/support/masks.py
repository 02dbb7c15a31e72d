"""Random trees and segments, their dense masks, and the numbers that attention is compared by."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def subtree_ends(parents: Sequence[int]) -> np.ndarray:
    """parents[t] < t, or -1 for a root; depth first -> the index just past each subtree, int32."""
    end = np.arange(1, len(parents) + 1)
    for t in reversed(range(len(parents))):
        if parents[t] >= 0:
            end[parents[t]] = max(end[parents[t]], end[t])
    return end.astype(np.int32)


def trees_from_pops(pops: Sequence[int]) -> np.ndarray:
    """subtree_end of the trees in which token t first leaves pops[t] of the open ancestors."""
    parents, path = [], []
    for t, leave in enumerate(pops):
        path = path[: max(len(path) - leave, 0)]
        parents.append(path[-1] if path else -1)
        path.append(t)
    return subtree_ends(parents)


def reasoning_row(length: int, rng: np.random.Generator, padding: int = 0) -> np.ndarray:
    """Trees like the training's: a trunk of a quarter row, branches from anywhere; then padding."""
    pops: list[int] = []
    while len(pops) < length:
        trunk = depth = int(rng.integers(length // 4, length // 2))
        pops += [length] + [0] * (trunk - 1)
        for _ in range(rng.integers(1, 6)):
            run = int(rng.integers(1, length // 6))
            leave = int(rng.integers(0, min(depth, trunk // 2)))
            pops += [leave] + [0] * (run - 1)
            depth += run - leave
    ends = np.minimum(trees_from_pops(pops[:length]), length - padding)
    alone = np.arange(length) + 1
    return np.where(alone > length - padding, alone, ends).astype(np.int32)


def tree_mask(ends: np.ndarray) -> np.ndarray:
    """bool [..., T queries, T keys] by the formula: j <= i < subtree_end[j]."""
    i, j = np.indices((ends.shape[-1],) * 2)
    return (j <= i) & (i < ends[..., None, :])


def segment_mask(seg: np.ndarray) -> np.ndarray:
    """bool [..., P, P]: equal ids that are no padding."""
    return (seg[..., :, None] == seg[..., None, :]) & (seg >= 0)[..., None, :]


def random_qkv(rows, length, heads, kv_heads, size, seed=0, dtype=jnp.float32):
    """q, k, v and a cotangent for the result."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def result_and_grads(function, q, k, v, cotangent, ids):
    """[out, dq, dk, dv] of function(q, k, v, ids), compiled."""

    @jax.jit
    def run(q, k, v, cotangent):
        out, pull = jax.vjp(lambda *qkv: function(*qkv, ids), q, k, v)
        return [out, *pull(cotangent)]

    return run(q, k, v, cotangent)


def errors(got, expected) -> dict[str, float]:
    """Largest difference over largest value, of each of out, dq, dk, dv."""
    names = ("out", "dq", "dk", "dv")
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in zip(got, expected, strict=True)]
    return {n: np.abs(a - b).max() / np.abs(b).max() for n, (a, b) in zip(names, pairs)}
