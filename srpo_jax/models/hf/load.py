"""Read a Hugging Face checkpoint folder into parameters. safetensors only, and nothing is trusted.

What is in the folder and what it means is decided here, from the files' headers alone; hf/stream.py
then reads the numbers, so that a 72B model needs no host that can hold it.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.config_reader import shown
from srpo_jax.models.blocks.hf_folder import ADAPTERS, parsed_object
from srpo_jax.models.blocks.tensor_spec import EMBEDDING, TensorSpec
from srpo_jax.models.hf import tensor_match as names
from srpo_jax.models.hf.stream import BUFFER_DTYPES, DTYPES, Stream, Tensor

LARGEST_HEADER = 8 << 20  # bytes of a safetensors header: 90,000 tensors; released ones have 0.1 MB
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, or those that the index names.

    If both are there the single file counts, as in transformers. Raises UserError: no folder, no
    weights, weights in another format only, an index that is damaged or names a file that is not
    a plain name of an existing file in the folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint directory")
    if (folder / ADAPTERS).is_file():
        raise UserError(
            f"{folder}: has {ADAPTERS}, by which transformers puts adapters on the model; merge "
            "them into it first, with peft's merge_and_unload"
        )
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth")]
    if pickled:
        raise UserError(
            f"{folder}: only safetensors weights are read, and this folder has "
            f"{names.shorten(pickled)}; convert it with transformers' save_pretrained"
        )
    raise UserError(f"{folder}: no weights (neither {SINGLE} nor {INDEX})")


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
    index = folder / INDEX
    try:
        weight_map = parsed_object(index, LARGEST_HEADER)["weight_map"]
        files = set(weight_map.values())
    except (UserError, KeyError, TypeError, AttributeError) as error:
        why = one_line(error, 300)
        raise UserError(f"{index}: not a readable index of weights ({why})") from error
    for name in sorted(files, key=str):
        # Plain names only: a crafted index must not make us read (or write) anywhere else.
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise UserError(f"{index}: names a file outside the folder: {shown(name)}")
        if not (folder / name).is_file():
            raise UserError(f"{index}: names {shown(name)}, which is not in the folder")
    return weight_map


def read_header(file: pathlib.Path) -> tuple[bytes, dict[str, Tensor]]:
    """The header of a safetensors file: its bytes (length field included) and its tensors.

    Tensors come in the order of their data. Raises UserError if safetensors refuses the file
    (truncated, overlapping or out-of-range tensors), or if its header is above LARGEST_HEADER.
    """
    try:
        with open(file, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
        if LARGEST_HEADER < size < file.stat().st_size:
            raise UserError(f"{file}: a header of {size} bytes; at most {LARGEST_HEADER} are read")
        with safe_open(file, framework="numpy") as opened:  # validates the whole header
            opened.keys()
        with open(file, "rb") as f:
            length = f.read(8)
            header = length + f.read(int.from_bytes(length, "little"))
        entries = json.loads(header[8:])
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        why = one_line(error, 300)
        raise UserError(f"{file}: not a readable safetensors file ({why})") from error
    entries.pop("__metadata__", None)
    tensors = {
        name: Tensor(file, e["dtype"], tuple(e["shape"]), len(header) + e["data_offsets"][0])
        for name, e in entries.items()
    }
    return header, dict(sorted(tensors.items(), key=lambda item: item[1].start))


def list_tensors(folder: str | pathlib.Path) -> dict[str, Tensor]:
    """Tensor name -> Tensor of a whole checkpoint. Reads headers only.

    Raises UserError as `weight_files` and `read_header` do, and if a name is in two files, if the
    index and the files disagree, or if a dtype is not F32, F16 or BF16 (of buffers that are only
    copied, see tensor_match.LEFTOVER, others are read too).
    """
    folder = pathlib.Path(folder)
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors = read_header(file)[1]
        twice = sorted(set(tensors) & set(found))
        if twice:
            raise UserError(f"{folder}: in two weight files: {names.shorten(twice)}")
        found.update(tensors)
    if not (folder / SINGLE).is_file():
        weight_map = _weight_map(folder)
        wrong = [n for n, t in found.items() if weight_map.get(n) != t.file.name]
        wrong += sorted(set(weight_map) - set(found))
        if wrong:
            raise UserError(f"{folder}: {INDEX} and the files disagree on {names.shorten(wrong)}")
    if len(found) > names.MOST_TENSORS:
        raise UserError(f"{folder}: {len(found)} tensors; at most {names.MOST_TENSORS} are read")
    odd = [f"{n} {t.dtype}" for n, t in found.items() if not _is_read(n, t.dtype)]
    if odd:
        listed = f"{', '.join(DTYPES)} are read, not {names.shorten(odd)}"
        raise UserError(f"{folder}: only {listed}{names.advice(found)}")
    return found


def _is_read(name: str, dtype: str) -> bool:
    return dtype in (BUFFER_DTYPES if names.LEFTOVER.search(name) else DTYPES)


def placed_tensors(
    folder: str | pathlib.Path, config: ModelConfig
) -> dict[str, tuple[Tensor, names.TensorPlace]]:
    """Tensor name -> (Tensor, its place among the parameters), total both ways (`names.match`).

    A checkpoint that ties its head and stores it all the same is accepted if the two are equal.
    """
    tensors = list_tensors(folder)
    places = names.match({n: t.shape for n, t in tensors.items()}, config, str(folder))
    head = _tied_head(places, config)
    if head is not None:
        embedding = next(n for n, p in places.items() if n != head and p.entry.param == EMBEDDING)
        if not _equal(tensors[head], tensors[embedding]):
            raise UserError(
                f"{folder}: {head} differs from {embedding} although config.json ties them; to "
                "keep both, set tie_word_embeddings to false in config.json, at the root and in "
                "text_config"
            )
    return {name: (tensors[name], place) for name, place in places.items()}


def _equal(a: Tensor, b: Tensor, rows: int = 1 << 12) -> bool:
    """Whether two tensors of one shape have the same bytes. Few of them are mapped at a time."""
    return a.dtype == b.dtype and all(
        a.view()[start : start + rows].tobytes() == b.view()[start : start + rows].tobytes()
        for start in range(0, a.shape[0], rows)
    )


def _tied_head(places: Mapping[str, names.TensorPlace], config: ModelConfig) -> str | None:
    """The name of a head that is stored although it is tied to the embedding."""
    if not config.text.tie_word_embeddings:
        return None
    head = config.family.head
    return next((name for name in places if names.canonical(name, config) == head), None)


def load_params(
    folder: str | pathlib.Path,
    config: ModelConfig,
    *,
    dtype: Any = None,
    shardings: Any = None,
) -> dict:
    """Parameters of the checkpoint in `folder`, a nested dict of jax arrays.

    dtype: of every parameter; None keeps the file's (the wider one where layers differ).
    shardings: a nested dict like the parameters, or one Sharding for all; every device then reads
    only its own slice, so this also works when no single host or device can hold the model.
    Raises UserError as `placed_tensors` does; nothing is read into memory before all names fit.
    """
    tensors: dict[str, list[tuple[int, Tensor]]] = {}
    entries: dict[str, TensorSpec] = {}
    placed = placed_tensors(folder, config)
    copy = _tied_head({name: place for name, (_, place) in placed.items()}, config)
    for name, (tensor, place) in placed.items():
        if name == copy or place.entry.param is None:
            continue
        entries[place.entry.param] = place.entry
        tensors.setdefault(place.entry.param, []).append((place.layer or 0, tensor))

    params: dict = {}
    with Stream() as stream:
        for path, entry in entries.items():
            layers = [tensor for _, tensor in sorted(tensors[path], key=lambda item: item[0])]
            kinds = [dtype] if dtype is not None else [DTYPES[t.dtype] for t in layers]
            sharding = _get(shardings, path) if isinstance(shardings, Mapping) else shardings
            *parents, last = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = stream.array(entry, layers, np.result_type(*kinds), sharding)
    return params


def _get(tree: Mapping, path: str) -> Any:
    node = tree
    for part in path.split("/"):
        node = node[part]
    return node
