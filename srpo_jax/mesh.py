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
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from srpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # the axes that rows of a batch are split over


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh over all `devices` (default: every device of all processes), in the order of AXES.

    At most one size may be -1: it takes what the others leave. Errors: UserError when the sizes do
    not multiply to the number of devices.
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
    # jax.make_mesh refuses axes that are no whole sides of a TPU slice, as 32*2 on v5e:8x8; where
    # it does not, this gives the same order.
    placed = mesh_utils.create_device_mesh(
        [sizes[axis] for axis in AXES], devices, allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)
