"""Attention over reasoning trees, picture segments, tiles and decoding branches; the one chooser.

| impl | what it is | platforms |
| --- | --- | --- |
| xla | all scores, by query chunks, the plain way (xla.py) | all |
| block | only the blocks with a visible pair, a loop in XLA (block_sparse.py) | all |
| pallas_tpu | the same as a kernel (pallas_tpu.py) | tpu |
| pallas_gpu | the same as kernels in Triton (pallas_gpu.py) | gpu |
| pallas_tpu_interpret, pallas_gpu_interpret | in Pallas' interpreter: for tests, very slow | cpu |
| auto | the fastest of them for the platform and the length, see `choose` | all |

The platform is that of the mesh's devices, so a program compiled ahead of time for a TPU on a host
without one gets the TPU kernel. A model holds one `Attend` and asks it; it never names an impl.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from srpo_jax.errors import UserError
from srpo_jax.models.attention import xla
from srpo_jax.models.attention.shard import by_blocks
from srpo_jax.models.attention.xla import branch_attention

__all__ = [
    "Attend",
    "branch_attention",
    "choose",
    "platform_of",
    "row_attention",
    "segment_attention",
    "tree_attention",
]

PLATFORM_OF = {
    "pallas_tpu": "tpu",
    "pallas_tpu_interpret": "cpu",
    "pallas_gpu": "gpu",
    "pallas_gpu_interpret": "cpu",
}
IMPLEMENTATIONS = ("auto", "xla", "block", *PLATFORM_OF)
# Up to here it hardly matters. Measured on 2 CPU cores, forward and backward, plain over blocks
# (studies/speed/attention.py): 1.6 at 231 tokens, 4.3 at 525, 7.5 at 989, 14 at 1785, 26 at 6383;
# 4.9 for 2048 tokens without any branch. Not measured on TPU or GPU.
SHORT = 256
GPU_LONGEST = 16384  # what its list of blocks holds with the smallest blocks of pallas_gpu


def choose(impl: str, platform: str, length: int) -> str:
    """What "auto" stands for, or `impl` itself. platform: as platform_of; length: T.

    Errors: UserError for an unknown name, or one that the platform cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"attention {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if impl != "auto":
        needed = PLATFORM_OF.get(impl, platform)
        if needed != platform:
            needed = {"gpu": "an NVIDIA GPU of compute capability 8.0 or newer"}.get(needed, needed)
            raise UserError(f"attention {impl!r} runs on {needed}, not on {platform}; use 'auto'")
        return impl
    if length <= SHORT:
        return "xla"
    if platform == "gpu":
        return "pallas_gpu" if length <= GPU_LONGEST else "block"
    return "pallas_tpu" if platform == "tpu" else "block"


def platform_of(device: jax.Device) -> str:
    """ "cpu", "tpu", "gpu" (NVIDIA from compute capability 8.0, Ampere, on) or "other gpu"."""
    if device.platform != "gpu":
        return device.platform
    try:  # "8.0"; "gfx942" on AMD
        return "gpu" if float(device.compute_capability) >= 8 else "other gpu"
    except (AttributeError, ValueError):
        return "other gpu"


def tree_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    *,
    impl: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Attention along the root paths of token trees laid out depth first.

    Query i sees key j iff `j <= i < subtree_end[j]`: j is i itself or one of its ancestors. With
    every subtree_end equal to T this is causal attention; several trees may share a row.

    Args:
        q: [B, T, H, d]; k, v: [B, T, K, d], H a multiple of K.
        subtree_end: int32 [B, T], the index just past the subtree of each token (> its own index).
        impl: see the head of this file.
        mesh: what the arrays are split over: rows over every axis but "tensor", heads over that
            one. None: they lie on one device, or the caller is inside a shard_map already.

    Returns: [B, T, H, d] in v's dtype. Differentiable once, in reverse mode, by q, k and v.
    Errors: UserError from `choose`, and on TPU for rows too long for its memory.
    """
    device = _device(mesh)
    impl = choose(impl, platform_of(device), q.shape[1])
    if impl == "xla":
        return xla.tree_attention(q, k, v, subtree_end)
    return by_blocks(q, k, v, subtree_end, kind="tree", impl=impl, mesh=mesh, device=device)


def segment_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seg: jax.Array,
    *,
    impl: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Full attention inside segments: a position sees the positions of its own segment.

    Args: q [B, P, H, d]; k, v [B, P, K, d]; impl, mesh: as tree_attention. seg: int32 [B, P]; a
        segment is a run of equal ids (an id must not come back later in the row). Ids below 0 are
        padding: it sees nothing, is seen by nothing, and its result is 0.
    Returns: [B, P, H, d] in v's dtype.
    """
    device = _device(mesh)
    impl = choose(impl, platform_of(device), q.shape[1])
    if impl == "xla":
        return xla.segment_attention(q, k, v, seg)
    return by_blocks(q, k, v, seg, kind="segment", impl=impl, mesh=mesh, device=device)


def row_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    shown: jax.Array,
    *,
    impl: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Full attention inside each row (a tile of a picture): segment_attention with one segment.

    Args: q [N, n, H, d]; k, v [N, n, K, d]; impl, mesh: as tree_attention. shown: bool [N]; a row
        that is not shown is padding: no scores are computed for it, and its result is 0.
    Returns: [N, n, H, d] in v's dtype.
    """
    device = _device(mesh)
    impl = choose(impl, platform_of(device), q.shape[1])
    seg = jnp.broadcast_to(jnp.where(shown, 0, -1)[:, None], q.shape[:2]).astype(jnp.int32)
    if impl == "xla":
        return xla.segment_attention(q, k, v, seg)
    return by_blocks(q, k, v, seg, kind="row", impl=impl, mesh=mesh, device=device)


@dataclasses.dataclass(frozen=True)
class Attend:
    """A model's attention hook: which implementation, and the mesh its arrays are split over."""

    impl: str = "auto"
    mesh: Mesh | None = None

    def tree(self, q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array) -> jax.Array:
        """See tree_attention."""
        return tree_attention(q, k, v, subtree_end, impl=self.impl, mesh=self.mesh)

    def segments(self, q: jax.Array, k: jax.Array, v: jax.Array, seg: jax.Array) -> jax.Array:
        """See segment_attention."""
        return segment_attention(q, k, v, seg, impl=self.impl, mesh=self.mesh)

    def rows(self, q: jax.Array, k: jax.Array, v: jax.Array, shown: jax.Array) -> jax.Array:
        """See row_attention."""
        return row_attention(q, k, v, shown, impl=self.impl, mesh=self.mesh)


def _device(mesh: Mesh | None) -> jax.Device:
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]
