"""From tensors in files to arrays on devices, with next to no memory of the host in between.

A parameter is assembled one device's slice at a time, in one buffer that all slices share: what a
device needs is copied out of the mapped file (cast, transposed), sent off, and overwritten by the
next. So the host holds one slice, PIECE at most, whatever the model's size; mapped pages are given
back after every JOB. Only the pages that hold a part of the slice are ever read from the disk.

An example: layers/mlp/up/kernel is [28 layers, 3584, 18944], from 28 tensors that the files hold as
[18944, 3584]. On a mesh of fsdp=4 a device's slice is [28, 896, 18944]. In float32 that is 1.9 GB,
more than PIECE, so it goes as pieces of 7 layers:

    Stream.array    for each slice, with the devices that hold copies of it:
      _placed         zeros of the slice on the device; for each piece of layers 0-6, 7-13, ...:
        _sent           copies the piece through the buffer to the device
          _read           fills the buffer: cuts the piece into jobs, which threads run
            _jobs           per layer, 16 MiB of the file each
            _copy           maps its part of the file, transposes, casts, writes into the buffer
        _insert         writes the piece into the slice, on the device
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from srpo_jax.models.blocks.tensor_spec import TensorSpec

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Those of buffers that are copied and never computed with.
BUFFER_DTYPES = DTYPES | {
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

PIECE = 512 << 20  # bytes of a slice that are on the host at once; a larger slice goes in pieces
JOB = 16 << 20  # bytes of a file that one thread maps at once
THREADS = min(4, os.cpu_count() or 1)
# numpy copies a transposed array element by element along the result's rows and misses the cache
# at every one. In strips of so many rows of the file it is five times as fast (8 to 32 are alike).
STRIP = 16

Bounds = tuple[tuple[int, int], ...]  # (start, stop) on each axis of a parameter


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, as its file's header describes it.

    dtype: the header's name, a key of BUFFER_DTYPES if it can be viewed. start: the byte of the
    file where its numbers begin.
    """

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def view(self) -> np.ndarray:
        """The tensor as a read-only view of the file; bytes are read when they are used.

        The pages that were read count as this process's until the view is dropped.
        """
        # A mapping may begin at multiples of the page size alone: begin at the one before.
        kind, count = np.dtype(BUFFER_DTYPES[self.dtype]), math.prod(self.shape)
        if count == 0:
            return np.empty(self.shape, kind)
        skip = self.start % mmap.ALLOCATIONGRANULARITY
        size = skip + count * kind.itemsize
        with open(self.file, "rb") as f:
            pages = mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ, offset=self.start - skip)
        return np.frombuffer(pages, kind, count, skip).reshape(self.shape)


class Stream:
    """Reads parameters one after another. Use it as a context, since it holds threads."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(THREADS)
        self._buffer = np.empty(0, np.uint8)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error) -> None:
        self._pool.shutdown()

    def array(
        self, entry: TensorSpec, tensors: Sequence[Tensor], dtype, sharding: Sharding | None
    ) -> jax.Array:
        """The parameter of `entry`, shape entry.full_shape, from its tensors in layer order.

        sharding None: on the default device. Otherwise every addressable device gets its slice,
        and slices of other processes are not read.
        """
        shape = entry.full_shape
        if sharding is None:
            return self._placed(entry, tensors, dtype, tuple((0, n) for n in shape), [None])[0]
        devices: dict[Bounds, list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            bounds = tuple(part.indices(n)[:2] for part, n in zip(index or (), shape, strict=True))
            devices.setdefault(bounds, []).append(device)
        slices = [
            found
            for bounds, copies in devices.items()
            for found in self._placed(entry, tensors, dtype, bounds, copies)
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, slices)

    def _placed(self, entry, tensors, dtype, bounds: Bounds, devices) -> list[jax.Array]:
        """One slice of the parameter, as an array on each of `devices`.

        A slice larger than PIECE is made of zeros on the device, into which pieces of whole rows
        (of the first axis) are written one after another.
        """
        (first, last), *rest = bounds
        row = math.prod(stop - start for start, stop in rest) * dtype.itemsize
        rows = max(1, PIECE // max(1, row))
        if last - first <= rows:
            return self._sent(entry, tensors, dtype, bounds, devices)
        shape = tuple(stop - start for start, stop in bounds)
        whole = [_zeros(shape, dtype, device) for device in devices]
        for start in range(first, last, rows):
            part = ((start, min(start + rows, last)), *rest)
            pieces = self._sent(entry, tensors, dtype, part, devices)
            whole = [_insert(w, piece, start - first) for w, piece in zip(whole, pieces)]
            jax.block_until_ready(whole)  # else pieces would pile up on the device
        return whole

    def _sent(self, entry, tensors, dtype, bounds: Bounds, devices) -> list[jax.Array]:
        """As `_placed`, in one go through the buffer, which is free again when this returns."""
        host = self._read(entry, tensors, dtype, bounds)
        sent = jax.block_until_ready([jax.device_put(host, device) for device in devices])
        if any(_shares_memory(array, host) for array in sent):
            self._buffer = np.empty(0, np.uint8)  # the array has taken it over: take another
        return sent

    def _read(self, entry, tensors, dtype, bounds: Bounds) -> np.ndarray:
        """The parameter inside `bounds`, in the buffer: a view, good until the next call."""
        shape = [stop - start for start, stop in bounds]
        size = math.prod(shape) * dtype.itemsize
        if self._buffer.size < size:
            self._buffer = np.empty(0, np.uint8)  # the old one goes before the new one comes
            self._buffer = _unaligned(size)
        out = self._buffer[:size].view(dtype).reshape(shape)
        if entry.pad is not None:
            out.fill(0)  # rows that no tensor has stay zero
        jobs: list[tuple] = []
        if entry.layers is None:
            jobs += _jobs(out, entry, tensors[0], bounds)
        else:
            (first, last), *inner = bounds
            for i, tensor in enumerate(tensors[first:last]):
                jobs += _jobs(out[i], entry, tensor, inner)
        if len(jobs) == 1:  # most biases and norms
            _copy(*jobs[0])
        else:
            list(self._pool.map(lambda job: _copy(*job), jobs))
        return out


def _jobs(out: np.ndarray, entry: TensorSpec, tensor: Tensor, bounds) -> Iterator[tuple]:
    """Cuts the task `out = tensor inside bounds` into jobs: arguments of `_copy`.

    The cut is along the axis that is outermost in the file, whichever axis of the parameter that
    is, so a job reads one stretch of the file of about JOB bytes.
    """
    inside = tuple(slice(start, stop) for start, stop in bounds)
    view = entry.to_param(tensor.view())[inside]
    out = out[tuple(slice(n) for n in view.shape)]  # without the rows that are padding
    if not view.size:
        return
    axis = int(np.argmax(view.strides))
    rows = max(1, JOB // view.strides[axis])
    for start in range(0, view.shape[axis], rows):
        cut = (*[slice(None)] * axis, slice(start, start + rows))
        yield out[cut], entry, tensor, inside, cut


def _copy(out: np.ndarray, entry: TensorSpec, tensor: Tensor, inside: tuple, cut: tuple) -> None:
    """One job: writes the tensor's numbers inside `inside` and `cut` into `out`, cast to its dtype.

    The numbers are read in the order in which they lie in the file, so that pages come from the
    disk one after another; where the parameter is a transposed tensor, in strips (see STRIP).
    """
    view = entry.to_param(tensor.view())[inside][cut]  # a mapping of its own, gone at the end
    # Both with the axes in the file's order: the last one is contiguous in the file.
    order = sorted(range(view.ndim), key=lambda axis: -view.strides[axis])
    out, view = out.transpose(order), view.transpose(order)
    row = order.index(view.ndim - 1)  # the axis along which `out` lies in memory
    if row == view.ndim - 1:  # and the file too
        out[...] = view
        return
    for outer in np.ndindex(view.shape[:row]):
        for start in range(0, view.shape[row], STRIP):
            strip = (*outer, slice(start, start + STRIP))
            out[strip] = view[strip].astype(out.dtype)


def _unaligned(size: int) -> np.ndarray:
    """`size` bytes at an address that is no multiple of 64.

    An array at a multiple of 64 the CPU back end takes over as it is, without a copy. It would then
    be numpy's memory, which jax can never donate to a train step.
    """
    raw = np.empty(size + 64, np.uint8)
    start = (16 - raw.ctypes.data) % 64
    return raw[start : start + size]


def _shares_memory(array: jax.Array, host: np.ndarray) -> bool:
    on_host = next(iter(array.devices())).platform == "cpu"
    return on_host and array.unsafe_buffer_pointer() == host.ctypes.data


def _zeros(shape: tuple[int, ...], dtype, device: jax.Device | None) -> jax.Array:
    where = None if device is None else SingleDeviceSharding(device)
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=where)()


@functools.partial(jax.jit, donate_argnums=0)
def _insert(whole: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis=0)
