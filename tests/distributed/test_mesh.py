"""srpo_jax/distributed/mesh.py."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from srpo_jax.distributed.mesh import AXES, make_mesh, number_of_slices
from srpo_jax.distributed.sharding import row_shards, rows_here
from srpo_jax.errors import UserError


class Chip:
    """What a mesh needs to know of a TPU chip: a 2x2 corner of a slice on each host."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, slice_index: int, at: int):
        self.slice_index, self.id = slice_index, 4 * slice_index + at
        self.process_index, self.coords = slice_index, (at % 2, at // 2, 0)


def test_default_mesh_covers_every_device():
    """Without settings all devices go to fsdp, and the three axes always exist."""
    mesh = make_mesh()
    assert mesh.axis_names == AXES
    assert mesh.shape["fsdp"] == len(jax.devices()) == row_shards(mesh)
    assert rows_here(mesh, 3 * row_shards(mesh)) == tuple(range(3 * row_shards(mesh)))


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (3, 1, 1), (1, 1, 64), (2, -1, 7)])
def test_sizes_that_do_not_cover_the_devices_are_refused(sizes):
    """A mesh that would leave devices idle, or needs more, is one line that names the settings."""
    with pytest.raises(UserError, match="mesh data=") as error:
        make_mesh(*sizes, devices=jax.devices()[:1])
    assert "\n" not in str(error.value)


def test_only_data_goes_over_slices():
    """fsdp and tensor stay inside a slice, whatever order the devices come in."""
    chips = [Chip(slice_index, at) for slice_index in range(4) for at in range(4)]
    shuffled = [chips[i] for i in np.random.default_rng(0).permutation(16)]
    assert number_of_slices(shuffled) == 4
    for sizes in ((4, -1, 1), (4, 2, 2), (8, -1, 1), (8, 1, 2)):
        mesh = make_mesh(*sizes, devices=shuffled)
        for replica in mesh.devices:  # one index of `data`
            assert len({chip.slice_index for chip in replica.flat}) == 1
        assert len({chip.id for chip in mesh.devices.flat}) == 16
    for sizes in ((1, -1, 1), (2, 8, 1), (2, -1, 2)):
        with pytest.raises(UserError, match="no multiple of the 4 TPU slices") as error:
            make_mesh(*sizes, devices=shuffled)
        assert "\n" not in str(error.value)


def test_hosts_of_gpus_are_not_slices():
    """jax gives GPUs of different hosts different slices; fsdp over hosts stays allowed."""
    gpus = [Chip(slice_index, at) for slice_index in range(2) for at in range(4)]
    for gpu in gpus:
        gpu.platform, gpu.device_kind = "gpu", "NVIDIA H100"
    assert make_mesh(1, -1, 1, devices=gpus).shape["fsdp"] == 8
