"""The device mesh: three named axes that every sharding in this package refers to.

data    replicas of the whole state, rows of a batch split over them (over the data-centre network
        when there are several slices)
fsdp    rows of a batch AND parameters and optimizer state split over it
tensor  heads, ffn and vocabulary split over it; rows are not
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from srpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # the axes that rows of a batch are split over


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh over all `devices` (default: every device of all processes), in the order of AXES.

    At most one size may be -1: it takes what the others leave. On several TPU slices `data` is over
    them, fsdp and tensor stay inside a slice. Errors: UserError when the sizes do not multiply to
    the number of devices, or data is no multiple of the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {asked}: sizes must be positive, and at most one may be -1")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // taken
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh {asked} does not cover {len(devices)} device(s) exactly; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product is that number"
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = _by_slice(devices)
    if sizes["data"] % len(slices):
        raise UserError(
            f"mesh.data={sizes['data']} is no multiple of the {len(slices)} TPU slices: fsdp and "
            "tensor stay inside a slice"
        )
    sizes["data"] //= len(slices)
    shape = tuple(sizes[axis] for axis in AXES)
    parts = [jax.make_mesh(shape, AXES, types, devices=part) for part in slices]
    if len(parts) == 1:
        return parts[0]
    return Mesh(np.concatenate([part.devices for part in parts]), AXES, axis_types=types)


def _by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each TPU slice. A slice alone has no slice_index; elsewhere it means hosts."""
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        slices.setdefault(index, []).append(device)
    return [slices[index] for index in sorted(slices)]


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)
