"""What an engine has done, and how near to the limit of its chips that was."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from srpo_jax.distributed.accelerators import find_chip
from srpo_jax.distributed.sharding import bytes_per_device


@dataclasses.dataclass
class Counts:
    """What an engine has done. steps: of decoding; slot_steps: steps times slots; used: those in
    which a slot had a branch; tokens, branches, finished: drawn; questions: prefilled; seconds:
    spent in all, without compiling."""

    steps: int = 0
    slot_steps: int = 0
    used: int = 0
    tokens: int = 0
    branches: int = 0
    finished: int = 0
    questions: int = 0
    seconds: float = 0.0

    @property
    def slots_in_use(self) -> float:
        """0 to 1: the share of slots that had a branch, over all steps."""
        return self.used / max(self.slot_steps, 1)


def roofline_share(counts: Counts, params: Any) -> float | None:
    """0 to 1: the time in which the chips' memory can be read once a step for the weights alone, in
    parts of the time that was spent; None for chips that are not in the accelerators' table.

    A floor and no more: keys, values and prefills come on top of it.
    """
    (device, *_) = jax.tree.leaves(params)[0].sharding.device_set
    chip = find_chip(device.device_kind)
    if chip is None:
        return None
    bandwidth = chip.hbm_gbs * 1e9 / chip.devices
    floor = counts.steps * bytes_per_device(params) / bandwidth
    return floor / max(counts.seconds, 1e-9)
