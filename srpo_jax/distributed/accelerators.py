"""The TPU chips that `srpo plan` knows: what they can do, what they cost, which slices there are.

A table to edit. Peaks, memory and bandwidths are those of Google's pages
docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}; hbm_gib is what the compiler of libtpu 0.0.42
lets a program use (its own words when a program does not fit), which is less than the page says.

ici_gbs is one link in one direction: the page's "bidirectional ICI bandwidth per chip" / (2 x
links). The scaling book (jax-ml.github.io/scaling-book) gives 45 and 90 where this gives 50 and
100: nothing here was measured.

price: US dollars per chip-hour, on demand, in the cheapest US region, as remembered of Google's
price list of 2025. Not verified, and your contract differs: edit it or give --price.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from srpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip. devices: jax devices per chip; hbm_gib, peak_tflops, hbm_gbs: per chip.

    links: ICI links of a chip, two per dimension of its torus. wrap: sides of a slice that are a
    multiple of it are rings, the others are lines. shapes: the slices that can be had.
    """

    name: str
    kind: str  # jax's device_kind
    peak_tflops: float  # bfloat16
    hbm_gib: float
    hbm_gbs: float
    ici_gbs: float
    links: int
    wrap: int
    price: float
    shapes: tuple[str, ...]
    devices: int = 1


# The slices that Google's pages list; larger ones of whole 4x4x4 cubes are had on request.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
)

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "v5e",
            "TPU v5 lite",
            197,
            15.75,
            819,
            ici_gbs=50,
            links=4,
            wrap=16,
            price=1.20,
            shapes=FLAT,
        ),
        Chip(
            "v5p",
            "TPU v5",
            459,
            95.74,
            2765,
            ici_gbs=100,
            links=6,
            wrap=4,
            price=4.20,
            shapes=(*CUBES, "16x16x16", "16x16x24"),
        ),
        Chip(
            "v6e",
            "TPU v6 lite",
            918,
            31.25,
            1638,
            ici_gbs=100,
            links=4,
            wrap=16,
            price=2.70,
            shapes=FLAT,
        ),
        Chip(
            "tpu7x",
            "TPU7x",
            2307,
            189.5,
            7380,
            ici_gbs=100,
            links=6,
            wrap=4,
            price=12.00,
            shapes=CUBES,
            devices=2,
        ),
    )
}
# What people type, and what it is called here.
OTHER_NAMES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "trillium": "v6e",
    "v7x": "tpu7x",
    "ironwood": "tpu7x",
    "tpu7": "tpu7x",
    "v7": "tpu7x",
}


# Dense bfloat16 TFLOP/s and GB/s of memory of GPUs, by a part of jax's device_kind (the driver's
# name of the card, as "NVIDIA H100 80GB HBM3"), the first that fits. NVIDIA's data sheets print
# twice as many FLOP/s, "with sparsity": 1979, 1671 (NVL) and 1513 (PCIe); that of the A100 prints
# both.
GPU_PEAKS = (
    ("H200 NVL", 835.5, 4800),
    ("H200", 989.5, 4800),
    ("H100 NVL", 835.5, 3900),
    ("H100 PCIe", 756.5, 2000),
    ("H100", 989.5, 3350),
    ("A100", 312.0, 2039),
)


def _gpu(device_kind: str) -> tuple[float, float] | None:
    if device_kind.startswith("NVIDIA") and "MIG" not in device_kind:
        for part, tflops, gbs in GPU_PEAKS:
            if part in device_kind:
                return tflops * 1e12, gbs * 1e9
    return None


def find_chip(device_kind: str) -> Chip | None:
    """The chip of jax devices of this kind (device.device_kind), None if it is not in CHIPS."""
    return next((chip for chip in CHIPS.values() if chip.kind == device_kind), None)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one jax device of this kind (device.device_kind), None if unknown.

    A slice (MIG) of a GPU is unknown.
    """
    if chip := find_chip(device_kind):
        return chip.peak_tflops * 1e12 / chip.devices
    known = _gpu(device_kind)
    return known and known[0]


def bound_rows(device_kind: str) -> int | None:
    """How many tokens a matrix product with bfloat16 weights takes before its arithmetic takes
    longer than reading the weights: peak FLOP/s over bytes/s, as a weight has two bytes and costs
    two FLOPs a token. None for an unknown kind.
    """
    if chip := find_chip(device_kind):
        return int(chip.peak_tflops * 1e3 / chip.hbm_gbs)
    known = _gpu(device_kind)
    return known and int(known[0] / known[1])


def device_memory(device: Any) -> int | None:
    """Bytes that a program may use on a jax device: by the table above for a TPU, by its allocator
    for any other; None if it does not say (CPUs).
    """
    if chip := find_chip(device.device_kind):
        return int(chip.hbm_gib * 2**30) // chip.devices
    if device.platform == "cpu":
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice that can be had. name: as libtpu takes it, "v5e:4x8"."""

    chip: Chip
    sides: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

    @property
    def chips(self) -> int:
        return math.prod(self.sides)

    @property
    def devices(self) -> int:
        """jax devices."""
        return self.chips * self.chip.devices

    @property
    def host_chips(self) -> int:
        """Chips of one host (one VM, one process): a flat slice of up to 8 chips is one host, any
        other is made of hosts with 4."""
        alone = len(self.sides) == 2 and self.chips <= 8
        return self.chips if alone else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.host_chips

    @property
    def host_bounds(self) -> tuple[int, ...] | None:
        """libtpu's host bounds of a slice that is smaller than its usual host of 2x2 chips."""
        return (1, 1, 1) if self.chips == 1 else None

    def link_gbs(self, extent: tuple[int, ...]) -> float:
        """GB/s that one jax device can send to the others of its group, one direction.

        extent: how many chips of each side the group spans. A side that it takes whole and that
        is a ring gives two links, another one gives one link (to go round a line, data comes back
        over the same links). All sides are used at once. Devices of one chip share its links; a
        group inside a chip is taken to have 6 links' speed (the page of tpu7x says that of its die
        to die connection).
        """
        links = 0
        for taken, side in zip(extent, self.sides):
            if taken > 1:
                links += 2 if taken == side and side % self.chip.wrap == 0 else 1
        return (links / self.chip.devices or 6) * self.chip.ici_gbs


def parse_slice(name: str) -> Slice:
    """ "v5e:4x8" -> Slice. Errors: UserError naming the legal ones."""
    kind, _, shape = name.strip().lower().partition(":")
    if kind not in CHIPS:
        meant = OTHER_NAMES.get(kind)
        near = f"did you mean {meant}:{shape or '4x4'}?"
        hint = near if meant else f"there is {', '.join(CHIPS)}"
        raise UserError(f"--topology={name}: no such TPU; {hint}")
    chip = CHIPS[kind]
    if shape not in chip.shapes:
        turned = "x".join(sorted(shape.split("x"), key=lambda n: (len(n), n)))
        hint = f"did you mean {kind}:{turned}? " if turned in chip.shapes else ""
        raise UserError(
            f"--topology={name}: no {kind} slice of this shape can be had; {hint}"
            f"{kind} has {', '.join(chip.shapes)}"
        )
    return Slice(chip, tuple(int(n) for n in shape.split("x")))


@dataclasses.dataclass(frozen=True)
class Cloud:
    """What Google Cloud calls a kind of chip.

    accelerator, cores: v5p-8 is `accelerator` v5p and 8 / `cores` chips; gke: the node label
    cloud.google.com/gke-tpu-accelerator; machine: of ct5p-hightpu-4t the part before the number
    of chips; runtime: the TPU VM image.
    """

    accelerator: str
    cores: int
    gke: str
    machine: str
    runtime: str


# From xpk's system_characteristics.py (367c838) and Google's pages on TPUs in GKE; tpu7x is left
# out, as it needs placement policies that nobody here could try.
CLOUD: dict[str, Cloud] = {
    "v5e": Cloud("v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu", "v2-alpha-tpuv5-lite"),
    "v5p": Cloud("v5p", 2, "tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5"),
    "v6e": Cloud("v6e", 1, "tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e"),
}


def accelerator_type(slice_: Slice) -> str:
    """Google's name of a slice: "v5litepod-16" for v5e:4x4, "v5p-8" for v5p:2x2x1."""
    cloud = CLOUD[slice_.chip.name]
    return f"{cloud.accelerator}-{slice_.chips * cloud.cores}"


def machine_type(slice_: Slice) -> str:
    """Google's name of a slice's hosts: "ct5lp-hightpu-4t"."""
    return f"{CLOUD[slice_.chip.name].machine}-{slice_.host_chips}t"


def cloud_slice(name: str) -> Slice:
    """ "v5e:4x4" or "v5litepod-16" -> Slice. Errors: UserError when Google Cloud has none such."""
    slices = [parse_slice(f"{kind}:{shape}") for kind in CLOUD for shape in CHIPS[kind].shapes]
    by_accelerator = {accelerator_type(slice_): slice_ for slice_ in slices}
    found = by_accelerator.get(name.strip().lower()) or parse_slice(name)
    if found.chip.name not in CLOUD:
        raise UserError(f"--topology={name}: launch knows {', '.join(CLOUD)} only")
    return found
