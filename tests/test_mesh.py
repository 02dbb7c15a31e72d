"""srpo_jax/mesh.py."""

from __future__ import annotations

import jax
import pytest

from srpo_jax.errors import UserError
from srpo_jax.mesh import AXES, make_mesh, row_shards


def test_default_mesh_covers_every_device():
    """Without settings all devices go to fsdp, and the three axes always exist."""
    mesh = make_mesh()
    assert mesh.axis_names == AXES
    assert mesh.shape["fsdp"] == len(jax.devices()) == row_shards(mesh)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (3, 1, 1), (1, 1, 64), (2, -1, 7)])
def test_sizes_that_do_not_cover_the_devices_are_refused(sizes):
    """A mesh that would leave devices idle, or needs more, is one line that names the settings."""
    with pytest.raises(UserError, match="mesh data=") as error:
        make_mesh(*sizes, devices=jax.devices()[:1])
    assert "\n" not in str(error.value)
