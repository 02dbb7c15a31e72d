"""What a compiled step computes and sends, counted from its HLO with the trip counts of its loops.

FLOPs are those of matrix products and convolutions (TPUs compile the former to the latter), 2 for
a multiplication and an addition; positions of a convolution that fall into padding or between
dilated elements are not counted, as they cost nothing that XLA would count either. Everything is
per device, as the program is the one that each device runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from srpo_jax.plan.hlo_text import Computation, Instruction, Module, label

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes, of one step and device.

    bytes: of the whole array that is gathered, reduced or sent. wire_bytes: what a device sends
    with n devices in a group, by the bandwidth-optimal algorithms (a ring): gather and scatter
    (n-1)/n of bytes, all-reduce twice that, a permutation all of it. largest: the (at most 5)
    operations of the model that most of the bytes are for, and their shares of them.
    """

    kind: str
    axes: tuple[str, ...]  # mesh axes that a group spans; ("?",) for groups that are no axes
    group: int
    count: int
    bytes: float
    wire_bytes: float
    largest: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Stats:
    """flops: of products and convolutions. kernel_flops: what hand-written kernels (Pallas) say
    that they need at most; kernels: their names and how often each runs. unknown_loops: loops that
    were counted once, see hlo_text.Module.
    """

    flops: float
    kernel_flops: float
    kernels: Mapping[str, int]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]


def read_stats(
    text: str,
    mesh: Mapping[str, int] | None = None,
    *,
    step: str = "",
    lengths: Mapping[str, int] | None = None,
) -> Stats:
    """The counts of a compiled program, from its text.

    mesh: axis name -> size in the order of the program's devices; names the axes of collectives.
    step, lengths: see hlo_text.Module.
    """
    module = Module(text, step=step, lengths=lengths)
    flops = kernel_flops = 0.0
    kernels: dict[str, int] = {}
    found: dict[tuple[str, tuple[str, ...], int], dict[str, list[float]]] = {}
    for computation, instruction, runs in module:
        opcode = instruction.opcode
        if opcode == "dot":
            flops += runs * dot_flops(computation, instruction)
        elif opcode == "convolution":
            flops += runs * convolution_flops(computation, instruction)
        elif opcode == "custom-call" and "tpu_custom_call" in instruction.rest:
            name, count = _kernel(instruction)
            kernels[name] = kernels.get(name, 0) + runs
            kernel_flops += runs * count
        elif opcode.removesuffix("-start") in COLLECTIVES:
            kind, axes, group, nbytes = _collective(computation, instruction, mesh or {})
            if group > 1:
                entry = found.setdefault((kind, axes, group), {})
                counted = entry.setdefault(label(instruction), [0, 0.0])
                counted[0] += runs
                counted[1] += runs * nbytes
    collectives = tuple(_sum(*key, entry) for key, entry in sorted(found.items()))
    return Stats(flops, kernel_flops, kernels, collectives, tuple(module.unknown_loops))


def _sum(kind: str, axes: tuple[str, ...], group: int, by_source: dict) -> Collective:
    count = sum(times for times, _ in by_source.values())
    total = sum(nbytes for _, nbytes in by_source.values())
    order = sorted(by_source, key=lambda name: -by_source[name][1])
    largest = tuple((name, by_source[name][1] / (total or 1)) for name in order[:5])
    return Collective(kind, axes, group, count, total, total * _wire_share(kind, group), largest)


def dot_flops(computation: Computation, dot: Instruction) -> float:
    """2 x elements of the result x size of the contracted dimensions."""
    left = computation.operand(dot, 0).arrays[0]
    contracted = (int(i) for i in dot.attribute("lhs_contracting_dims").split(",") if i)
    return 2.0 * dot.arrays[0].size * math.prod(left.dims[i] for i in contracted)


def convolution_flops(computation: Computation, conv: Instruction) -> float:
    """2 x (output rows) x (output features) x (input features of the kernel) x (pairs of an output
    and a kernel position that meet an element of the input).
    """
    left, right, out = (x.split("-")[-1] for x in re.split(r"_|->", conv.attribute("dim_labels")))
    inputs, kernel = (computation.operand(conv, i).arrays[0].dims for i in (0, 1))
    result = conv.arrays[0].dims
    sizes = _window(conv.attribute("window"), sum(c.isdigit() for c in left))
    pairs = 1
    for axis, window in enumerate(sizes):
        axis = str(axis)
        pairs *= _meetings(
            inputs[left.index(axis)], kernel[right.index(axis)], result[out.index(axis)], **window
        )
    features = kernel[right.index("i")] * result[out.index("f")]
    return 2.0 * result[out.index("b")] * features * pairs


def _window(text: str, rank: int) -> list[dict[str, int]]:
    """window={size=3x8 stride=.. pad=2_2x7_7 lhs_dilate=.. rhs_dilate=..}, per spatial axis."""
    fields = dict(part.split("=") for part in text.split())

    def of(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * rank

    return [
        {"stride": int(s), "pad": int(p.split("_")[0]), "dilate": int(a), "kernel_dilate": int(b)}
        for s, p, a, b in zip(
            of("stride", "1"), of("pad", "0_0"), of("lhs_dilate", "1"), of("rhs_dilate", "1")
        )
    ]


def _meetings(
    size: int, kernel: int, out: int, stride: int, pad: int, dilate: int, kernel_dilate: int
) -> int:
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilate - pad
    inside = (place >= 0) & (place <= (size - 1) * dilate) & (place % dilate == 0)
    return int(inside.sum())


def _kernel(call: Instruction) -> tuple[str, float]:
    """(name, declared FLOPs) of a Pallas kernel."""
    declared = re.search(r'"flops":"?(\d+)', call.rest)
    scopes = re.search(r'op_name="[^"]*?([^"/]+)/pallas_call', call.rest)
    name = scopes[1] if scopes else call.name.rstrip(".0123456789")
    return name, float(declared[1]) if declared else 0.0


def _collective(computation: Computation, instruction: Instruction, mesh: Mapping[str, int]):
    """(kind, axes, group size, bytes of the whole array)."""
    kind = instruction.opcode.removesuffix("-start")
    nbytes = sum(
        array.nbytes
        for index in range(len(instruction.operands))
        for array in computation.operand(instruction, index).arrays
    )
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.rest.split("source_target_pairs=")[-1])
        members = [(int(a), int(b)) for a, b in pairs if a != b]
        return kind, _axes_of(members, mesh), 2 if members else 1, nbytes
    groups = replica_groups(instruction.rest, math.prod(mesh.values()))
    if kind == "all-gather":
        nbytes *= len(groups[0])
    # TPUs write a reduce-scatter as one fusion of an all-reduce and the slice that is kept.
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return kind, _axes_of(groups, mesh), len(groups[0]), nbytes


def replica_groups(rest: str, devices: int) -> list[tuple[int, ...]]:
    """The groups of a collective, in any of the forms that HLO writes them in.

    {{0,1},{2,3}}; [2,4]<=[4,2]T(1,0) (a range, reshaped, transposed, and cut into 2 groups of 4);
    mesh['a'=4,'b'=2] {'a'} (axes of a mesh over a range, or over `device_ids`); {} is everybody.
    """
    if found := _MESH.search(rest):
        sizes = re.findall(r"'([^']*)'=(\d+)", found[1])
        dims = [int(n) for _, n in sizes]
        ids = np.arange(math.prod(dims))
        if found[2] and (order := _IOTA.search(found[2])):
            ids = _iota(order[1], order[3])
        chosen = [i for i, (name, _) in enumerate(sizes) if f"'{name}'" in found[3]]
        others = [i for i in range(len(dims)) if i not in chosen]
        table = ids.reshape(dims).transpose(others + chosen)
        table = table.reshape(-1, math.prod(dims[i] for i in chosen))
    elif found := re.search(r"replica_groups=(\[[^\s]*)", rest):
        iota = _IOTA.match(found[1])
        assert iota, rest
        table = _iota(iota[2] or iota[1], iota[3]).reshape(_ints(iota[1]))
    else:
        listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", rest)
        inner = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
        return [tuple(_ints(group)) for group in inner] or [tuple(range(devices))]
    return [tuple(int(i) for i in group) for group in table]


def _iota(dims: str, order: str | None) -> np.ndarray:
    sizes = _ints(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_ints(order)) if order else ids).reshape(-1)


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _axes_of(groups: list[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    if not mesh or not groups:
        return ("?",)
    sizes = tuple(mesh.values())
    places = np.array([np.unravel_index(group, sizes) for group in groups])  # [groups, axes, n]
    varied = (places != places[:, :, :1]).any(axis=(0, 2))
    return tuple(name for name, differs in zip(mesh, varied) if differs)


def _wire_share(kind: str, group: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (group - 1) / group * (2 if kind == "all-reduce" else 1)
