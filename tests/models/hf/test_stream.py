"""srpo_jax/models/hf/stream.py: the numbers of plain numpy, with little memory and little I/O."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from srpo_jax.models.blocks.tensor_spec import TensorSpec, linear, plain, vector
from srpo_jax.models.hf import stream
from srpo_jax.models.hf.load import read_header
from srpo_jax.models.hf.stream import Stream
from tests.support import ROOT

ENTRIES = {
    "rows": plain("p", "t", (40, 6)),
    "rows, padded": TensorSpec("p", "t", (40, 6), (0, 1), (40, 6), pad=(0, 48)),
    "columns": linear("p", "t", 40, 6, (6, 40)),
    "columns, padded": linear("p", "t", 40, 6, (6, 40), pad=(1, 48)),
    "vector": vector("p", "t", (5, 8)),
    "heads out": linear("p", "t{i}", 3 * 4 * 18, 6, (6, 3, 4, 18), layers=3),
    "heads in": linear("p", "t{i}", 6, 4 * 18, (4, 18, 6), layers=3),
    "convolution": TensorSpec("p", "t", (6, 3, 2, 5, 5), (1, 2, 3, 4, 0), (150, 6)),
    "norms": vector("p", "t{i}", (7,), layers=3),
    "extra axes": TensorSpec("p", "t", (1, 9, 4), (0, 1, 2), (9, 4)),
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def written(folder: pathlib.Path, entry: TensorSpec, dtype):
    """The entry's tensors in a file, as the reader sees them, and what numpy makes of them."""
    rng = np.random.default_rng(0)
    names = [entry.name.format(i=i) for i in range(entry.layers or 1)]
    values = {name: rng.standard_normal(entry.disk).astype(dtype) for name in names}
    save_file(values, folder / "file.safetensors")
    layers = [value.transpose(entry.perm).reshape(entry.shape) for value in values.values()]
    whole = np.stack(layers) if entry.layers else layers[0]
    more = [(0, n - m) for n, m in zip(entry.full_shape, whole.shape)]
    found = read_header(folder / "file.safetensors")[1]
    return [found[name] for name in names], np.pad(whole, more)


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("name", ENTRIES)
def test_a_parameter_is_what_numpy_makes_of_its_tensors(tmp_path, monkeypatch, name, source, to):
    """Every way in which axes map, every cast, in one piece and in the smallest pieces."""
    entry, dtype = ENTRIES[name], np.dtype(DTYPES[to])
    tensors, whole = written(tmp_path, entry, DTYPES[source])
    expected = whole.astype(dtype)
    for piece, job in ((1 << 20, 1 << 20), (100, 64)):
        monkeypatch.setattr(stream, "PIECE", piece)
        monkeypatch.setattr(stream, "JOB", job)
        with Stream() as reader:
            found = reader.array(entry, tensors, dtype, None)
            again = reader.array(entry, tensors, dtype, None)  # through the same buffer
        assert found.dtype == dtype and found.shape == entry.full_shape
        for array in (found, again):
            assert np.asarray(array).tobytes() == expected.tobytes()


def test_any_slice_of_a_parameter(tmp_path):
    """Slices that begin and end anywhere, also inside the padding, are those of the whole."""
    rng = np.random.default_rng(1)
    for entry in ENTRIES.values():
        tensors, whole = written(tmp_path, entry, np.float32)
        for _ in range(20):
            bounds = tuple(tuple(sorted(rng.choice(n + 1, 2, False))) for n in entry.full_shape)
            with Stream() as reader:
                (found,) = reader._placed(entry, tensors, np.dtype("f4"), bounds, [None])
            assert np.array_equal(found, whole[tuple(slice(*b) for b in bounds)])


def test_arrays_can_be_donated(tmp_path):
    """An array that shares the reader's buffer would change with it, and a train step that donates
    it would need its memory twice."""
    entry = plain("p", "t", (64, 256))
    tensors, whole = written(tmp_path, entry, np.float32)
    with Stream() as reader:
        first = reader.array(entry, tensors, np.dtype("f4"), None)
        reader._buffer.fill(0)
        assert np.array_equal(first, whole)
    at = first.unsafe_buffer_pointer()
    after = jax.jit(lambda x: x + 1, donate_argnums=0)(first)
    assert first.is_deleted() and after.unsafe_buffer_pointer() == at


def test_only_the_pages_of_the_slice_are_read(tmp_path):
    """A process that owns a sixteenth of the rows leaves the rest of the file on the disk."""
    file, entry = tmp_path / "file.safetensors", plain("p", "t", (1 << 16, 1 << 11))
    file.touch()
    os.truncate(file, 4 * (1 << 27))  # zeros that take no room on the disk
    with Stream() as reader:
        tensor = stream.Tensor(file, "F32", entry.disk, 0)
        assert resident(file) == 0
        found = reader._read(entry, [tensor], np.dtype("f4"), ((1 << 12, 1 << 13), (0, 1 << 11)))
        assert found.nbytes == 1 << 25 and not found.any()
    # 1/16, and what the kernel reads ahead: 8 MB at either end where it is set high, 1/32.
    assert 1 / 16 <= resident(file) < 1 / 8


def resident(file: pathlib.Path) -> float:
    """The part of a file that is in the page cache."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with open(file, "rb") as f, mmap.mmap(f.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        code = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), found)
        del start
    assert code == 0, os.strerror(ctypes.get_errno())
    return sum(byte & 1 for byte in found) / pages


@pytest.mark.multi_device
@pytest.mark.parametrize(("mesh", "dtype"), [("fsdp8", "float32"), ("fsdp4xtensor2", "bfloat16")])
def test_the_host_needs_one_slice_besides_the_arrays(tmp_path, mesh, dtype):
    """200 MB over 8 devices: beside the arrays the process needs the largest slice of a device, and
    48 MB for what jax and numpy keep; of the file at most four jobs are mapped."""
    from srpo_jax.models.policy_model import abstract_params
    from srpo_jax.models.registry import load_model_config
    from studies.speed.checkpoint_import.__main__ import child
    from studies.speed.checkpoint_import.synthetic_checkpoint import write_checkpoint

    folder = write_checkpoint(tmp_path / "model", 0.2, shard_bytes=10**8)
    found = child({"folder": str(folder), "way": "ours", "mesh": mesh, "dtype": dtype}, sample=True)
    leaves = jax.tree.leaves(abstract_params(load_model_config(folder), dtype))
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in leaves) // 8
    assert found["arrays"] > 190e6
    assert largest < 0.05 * found["arrays"]
    assert found["over"] < largest + 48e6
    assert found["mapped"] < 4 * stream.JOB + 8e6


@pytest.mark.slow
def test_the_benchmark_ends_with_its_ratios(tmp_path):
    """One tiny run of everything that it measures."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "studies.speed.checkpoint_import",
            "--gigabytes=0.07",
            "--repeats=1",
            f"--folder={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "import_checkpoint" and len(result["rows"]) == 9
    assert result["ratios"]["seconds_put_over_ours_float32"] > 0
    assert not list(tmp_path.iterdir())
