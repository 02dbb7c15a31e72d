"""libtpu on a machine without a TPU (for planning, or the tests) is left alone.

Else jax asks it for devices first, and it answers with a handful of alarming lines of C++. Where
there may be a TPU, nothing is changed, and all that libtpu says of it is seen.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
from collections.abc import Mapping

# What a user, or Google's machines, set where there is a TPU.
SAID = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID")
DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def may_have_tpu(env: Mapping[str, str], devices: tuple[str, ...] = DEVICES) -> bool:
    """Whether this machine has TPU chips as far as can be told without libtpu, or jax is to use
    them anyway."""
    return any(env.get(name) for name in SAID) or any(map(glob.glob, devices))


def leave_libtpu_alone() -> None:
    """Makes jax find no TPU without asking libtpu, when there is none. To be called before jax is
    asked for devices. The platform stays known: what is lowered for a TPU still can be.
    """
    if importlib.util.find_spec("libtpu") is None or may_have_tpu(os.environ):
        return
    from jax._src import cloud_tpu_init, xla_bridge  # no public way

    if not cloud_tpu_init.running_in_cloud_tpu_vm:  # jax's own look at the PCI bus
        known = getattr(xla_bridge, "_backend_factories", {})
        if "tpu" in known:
            known["tpu"] = dataclasses.replace(known["tpu"], factory=lambda: None)
