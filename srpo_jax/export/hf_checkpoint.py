"""Write parameters back as the Hugging Face checkpoint that they came from.

The source folder is the pattern: every weight file gets the source file's own header, byte for
byte, and new data behind it, so names, dtypes, order, metadata and shards are the source's. All
other files are copied as they are. Re-saving with transformers would rename tensors, rewrite the
config and drop files (preprocessor_config.json among them).
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from srpo_jax.errors import UserError
from srpo_jax.export.digests import DIGESTS
from srpo_jax.files import naming, sync
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.hf import load, tensor_match
from srpo_jax.places import clear_moving, is_moving, move_folder

# Weights in any format, and their indices: not copied, since they are not the new weights.
WEIGHTS = tuple(".safetensors .bin .pt .pth .gguf .msgpack .h5 .onnx .index.json".split())
# Without these nothing reads a folder as a checkpoint or an adapter.
CONFIGS = ("config.json", "adapter_config.json")
# Folders that tools leave in a checkpoint; they are not part of it.
TOOL_FOLDERS = (".git", ".cache")

# (parameter path, layer or None, the source's values in the parameter's shape) -> new values
Edit = Callable[[str, int | None, np.ndarray], np.ndarray]


def export_checkpoint(
    params: Mapping | Edit,
    source_dir: str | pathlib.Path,
    out_dir: str | pathlib.Path,
    config: ModelConfig,
    *,
    model_card: str | None = None,
    check: Callable[[pathlib.Path], None] | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Write `params` to `out_dir` in the form of the checkpoint in `source_dir`.

    params: as `load_params` returns them, in any float dtype, on any number of devices; or a
    function that edits the source's values, one tensor at a time. Values are rounded to the source
    tensor's dtype. model_card: text of README.md instead of the source's. check: is given the
    complete folder before it gets its name, by process 0; what it raises undoes the export.
    allow_nonfinite: write numbers that are none, too.
    `out_dir` appears complete or not at all: everything is written to a sibling folder, flushed
    to disk and moved, with config.json last where that takes several steps. With several processes
    all must call this; process 0 writes.
    Raises UserError if out_dir exists and is not empty or lies in source_dir, if the source does
    not fit `config`, if params are not those of `config`, or if a value is not finite, in itself or
    in the dtype of its file.
    """
    source = pathlib.Path(source_dir)
    placed = load.placed_tensors(source, config)
    if not callable(params):
        _check_params(params, placed, config)
    with new_folder(out_dir, source) as folder:
        if folder is not None:
            _check_space(source, folder)
            _copy_other_files(source, folder, model_card)
        faults: list[str] = []
        for file in load.weight_files(source):
            faults += _write_weights(params, file, folder and folder / file.name, placed)
        if not allow_nonfinite:
            refuse(faults)
        if folder is not None and not (source / load.SINGLE).is_file():
            _copy(source / load.INDEX, folder / load.INDEX)
        if folder is not None and check is not None:
            check(folder)


@contextlib.contextmanager
def new_folder(out_dir: str | pathlib.Path, source: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """A folder to write to that becomes `out_dir` at the end, complete or not at all. None in all
    processes but the first, which writes.

    Raises UserError if out_dir exists and is not empty or lies in `source`.
    """
    out = pathlib.Path(os.path.abspath(out_dir))
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out}: lies in the source checkpoint {source}; choose another folder")
    killed = is_moving(out)  # an export that was: it goes below
    if not killed and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; nothing is overwritten")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export")  # all have looked before one writes
    if jax.process_index() != 0:
        yield None
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    clear_moving(out.parent, out.name.__eq__)
    partial = out.parent / f".{out.name}.partial"
    if partial.exists():
        shutil.rmtree(partial)  # an export that was killed
    partial.mkdir()
    try:
        with naming(out):
            yield partial
            _sync_folders(partial)
            move_folder(partial, out, last=CONFIGS)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_space(source: pathlib.Path, folder: pathlib.Path) -> None:
    """OSError ENOSPC if a copy of the source does not fit beside it: told before hours of work."""
    need = sum(file.stat().st_size for file in _other_files(source))
    need += sum(file.stat().st_size for file in load.weight_files(source))
    if shutil.disk_usage(folder).free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _other_files(source: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files that are copied: all but weights, and none of tools. Folders come with them."""
    for folder, subfolders, files in os.walk(source):
        here = pathlib.Path(folder)
        subfolders[:] = sorted(s for s in subfolders if s not in TOOL_FOLDERS)
        for name in subfolders:
            if (here / name).is_symlink():
                raise UserError(f"{here / name}: a link to a folder is not copied; remove it")
        kept = (name for name in sorted(files) if not name.endswith(WEIGHTS) and name != DIGESTS)
        yield from (here / name for name in kept)


def _check_params(params: Mapping, placed, config: ModelConfig) -> None:
    wanted = {
        place.entry.param: place.entry.full_shape
        for _, place in placed.values()
        if place.entry.param is not None
    }
    given = {
        "/".join(str(key.key) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    wrong = sorted(p for p in wanted.keys() | given.keys() if wanted.get(p) != given.get(p))
    if wrong:
        raise UserError(
            f"these parameters are not those of the {config.model_type} source checkpoint: "
            + tensor_match.shorten(wrong)
        )


def _write_weights(params, source: pathlib.Path, target: pathlib.Path | None, placed) -> list[str]:
    """One weight file: the source's header, then every tensor in the header's order. Returns what
    is not finite in it."""
    header, tensors = load.read_header(source)
    if target is None:  # take part in the gathers only
        for name in tensors:
            values_on_disk(params, *placed[name])
        return []
    faults = []
    with open(target, "wb") as f:
        f.write(header)
        for name in tensors:
            # In C order whatever the strides: a transposed view must come out right.
            value = np.ascontiguousarray(values_on_disk(params, *placed[name]))
            f.write(value.reshape(-1).view(np.uint8).data)
            if placed[name][1].entry.param is not None:
                faults += nonfinite(name, value)
    sync(target)
    return faults


def refuse(faults: list[str]) -> None:
    """UserError if there are faults, of the kind that `nonfinite` finds."""
    if faults:
        raise UserError(
            f"not exported: {tensor_match.shorten(faults)}; export an earlier --step, or insist "
            "with --allow_nonfinite"
        )


def nonfinite(name: str, value: np.ndarray, piece: int = 1 << 22) -> list[str]:
    """What is wrong with a contiguous array of floats: [], or one line that names it."""
    flat = value.reshape(-1)
    nans = infs = 0
    for start in range(0, flat.size, piece):
        part = flat[start : start + piece]
        if not np.isfinite(part).all():
            nans += int(np.isnan(part).sum())
            infs += int(np.isinf(part).sum())
    if not nans + infs:
        return []
    above = f" (above what {value.dtype} holds, or infinite before)" if infs else ""
    return [f"{name} has {nans} NaN and {infs} inf{above} among {flat.size} numbers"]


def values_on_disk(
    params: Mapping | Edit, source: load.Tensor, place: tensor_match.TensorPlace
) -> np.ndarray:
    """What an export of `params` holds in the place of the tensor `source`: an array of its shape
    and dtype on the host, of any strides."""
    path = place.entry.param
    if path is None:
        return source.view()  # not a parameter: as it was
    with np.errstate(over="ignore", invalid="ignore"):  # told by `nonfinite`
        value = _tensor(params, path, source, place)
        return value.astype(load.DTYPES[source.dtype], copy=False)


def _tensor(
    params: Mapping | Edit, path: str, source: load.Tensor, place: tensor_match.TensorPlace
) -> np.ndarray:
    """The values of one tensor of the parameter `path`, in the shape it has on disk, on the host.
    One layer at a time."""
    if callable(params):
        value = params(path, place.layer, place.entry.to_param(source.view()))
        return place.entry.to_disk(value)
    leaf: Any = params
    for part in path.split("/"):
        leaf = leaf[part]
    if place.layer is not None:
        leaf = leaf[place.layer] if isinstance(leaf, np.ndarray) else _layer(leaf, place.layer)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return place.entry.to_disk(np.asarray(leaf))


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def _copy_other_files(source: pathlib.Path, target: pathlib.Path, model_card: str | None) -> None:
    for file in _other_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, copy)
    if model_card is not None:
        card = target / "README.md"
        card.write_text(model_card, encoding="utf-8")
        sync(card)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Contents only; links (the Hub cache is made of them) become files."""
    shutil.copyfile(source, target)
    sync(target)


def _sync_folders(root: pathlib.Path) -> None:
    for folder, _, _ in os.walk(root):
        sync(pathlib.Path(folder))
