"""Write parameters back as the Hugging Face checkpoint that they came from.

The source folder is the pattern: every weight file gets the source file's own header, byte for
byte, and new data behind it, so names, dtypes, order, metadata and shards are the source's. All
other files are copied as they are. Re-saving with transformers would rename tensors, rewrite the
config and drop files (preprocessor_config.json among them).
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.hf import load, names
from srpo_jax.models.config import ModelConfig

# Weights in any format, and their indices: not copied, since they are not the new weights.
WEIGHTS = tuple(".safetensors .bin .pt .pth .gguf .msgpack .h5 .onnx .index.json".split())
# Folders that tools leave in a checkpoint; they are not part of it.
TOOL_FOLDERS = (".git", ".cache")


def export_checkpoint(
    params: Mapping,
    source_dir: str | pathlib.Path,
    out_dir: str | pathlib.Path,
    config: ModelConfig,
    *,
    model_card: str | None = None,
) -> None:
    """Write `params` to `out_dir` in the form of the checkpoint in `source_dir`.

    params: as `load_params` returns them, in any float dtype, on any number of devices; values are
    rounded to the source tensor's dtype. model_card: text of README.md instead of the source's.
    `out_dir` appears complete or not at all: everything is written to a sibling folder, flushed
    to disk and renamed. With several processes all must call this; process 0 writes.
    Raises UserError if out_dir exists and is not empty or lies in source_dir, if the source does
    not fit `config`, or if params are not those of `config`.
    """
    source, out = pathlib.Path(source_dir), pathlib.Path(os.path.abspath(out_dir))
    _check_out(source, out)
    placed = load.placed_tensors(source, config)
    _check_params(params, placed, config)

    writes = jax.process_index() == 0
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    if writes:
        if partial.exists():
            shutil.rmtree(partial)  # an export that was killed
        partial.mkdir()
    try:
        if writes:
            _copy_other_files(source, partial, model_card)
        for file in load.weight_files(source):
            _write_weights(params, file, partial / file.name if writes else None, placed)
        if writes:
            if not (source / load.SINGLE).is_file():
                _copy(source / load.INDEX, partial / load.INDEX)
            _sync_folders(partial)
            os.rename(partial, out)  # replaces an empty folder
            _sync(out.parent)
    except BaseException:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_out(source: pathlib.Path, out: pathlib.Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out}: lies in the source checkpoint {source}; choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; nothing is overwritten")


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
            + names.shorten(wrong)
        )


def _write_weights(params: Mapping, source: pathlib.Path, target: pathlib.Path | None, placed):
    """One weight file: the source's header, then every tensor in the header's order."""
    header, tensors = load.read_header(source)
    if target is None:  # take part in the gathers only
        for name in tensors:
            _tensor(params, *placed[name])
        return
    with open(target, "wb") as f:
        f.write(header)
        for name, tensor in tensors.items():
            value = _tensor(params, *placed[name]).astype(load.DTYPES[tensor.dtype], copy=False)
            # tobytes writes in C order whatever the strides: a transposed view comes out right.
            f.write(value.tobytes())
        f.flush()
        os.fsync(f.fileno())


def _tensor(params: Mapping, source: load.Tensor, place: names.Place) -> np.ndarray:
    """The values of one tensor, in the shape it has on disk, on the host. One layer at a time."""
    if place.entry.param is None:
        return source.view()  # not a parameter: as it was
    leaf: Any = params
    for part in place.entry.param.split("/"):
        leaf = leaf[part]
    if place.layer is not None:
        leaf = leaf[place.layer] if isinstance(leaf, np.ndarray) else _layer(leaf, place.layer)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return place.entry.to_disk(np.asarray(leaf))


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def _copy_other_files(source: pathlib.Path, target: pathlib.Path, model_card: str | None) -> None:
    for folder, subfolders, files in os.walk(source):
        here = pathlib.Path(folder)
        subfolders[:] = sorted(s for s in subfolders if s not in TOOL_FOLDERS)
        for name in subfolders:
            if (here / name).is_symlink():
                raise UserError(f"{here / name}: a link to a folder is not copied; remove it")
            (target / (here / name).relative_to(source)).mkdir()
        for name in sorted(files):
            if not name.endswith(WEIGHTS):
                _copy(here / name, target / (here / name).relative_to(source))
    if model_card is not None:
        card = target / "README.md"
        card.write_text(model_card, encoding="utf-8")
        _sync(card)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Contents only; links (the Hub cache is made of them) become files."""
    shutil.copyfile(source, target)
    _sync(target)


def _sync_folders(root: pathlib.Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(pathlib.Path(folder))


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
