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
from jax.sharding import AbstractMesh, AxisType, Mesh

from srpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh over all `devices` (default: every device of all processes), in the order of AXES.

    At most one size may be -1: it takes what the others leave. With several slices `data` goes
    over them: a slice holds data / slices whole replicas, so that only the gradients' sum, once a
    step, crosses the network between slices.
    Errors: UserError when the sizes do not multiply to the number of devices, and when data is not
    a multiple of the number of slices.
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
    shape = tuple(sizes[axis] for axis in AXES)
    slices = number_of_slices(devices)
    if shape[0] % slices:
        raise UserError(
            f"mesh {asked}: mesh.data={shape[0]} is no multiple of the {slices} TPU slices; fsdp "
            "and tensor stay inside a slice, as the network between slices is too slow for them"
        )
    # Without it axes must be whole sides of a TPU slice, and 32*2 on v5e:8x8 is refused; where they
    # are, the order is the same.
    options = {"allow_split_physical_axes": True}
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, **options)
    else:
        inside = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, **options)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(sizes: Sequence[int]) -> AbstractMesh:
    """A mesh without devices, of these sizes in the order of AXES."""
    return AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def over_processes(mesh: Mesh | AbstractMesh | None) -> bool:
    """Whether the mesh has devices of several processes, which then must all compute together."""
    if not isinstance(mesh, Mesh):
        return False
    return len({device.process_index for device in mesh.devices.flat}) > 1


def number_of_slices(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices the devices are of. On GPUs jax counts hosts as slices, but fsdp over
    hosts is what their network is made for: there it is 1.
    """
    if devices[0].platform == "gpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})
