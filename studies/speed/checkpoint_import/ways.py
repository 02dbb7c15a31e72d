"""The ways to read a checkpoint that __main__.py compares.

Each is way(folder, mesh, dtype) -> run; `run()` returns the arrays, ready. What every user has to
do before (reading config.json, choosing shardings) is done before and not measured.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open

from srpo_jax.distributed.sharding import param_shardings
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf.load import load_params, placed_tensors
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config

Run = Callable[[], Any]


def ours(folder: str, mesh, dtype) -> Run:
    config = load_model_config(folder)
    shardings = param_shardings(abstract_params(config, dtype), mesh)
    return lambda: jax.block_until_ready(
        load_params(folder, config, dtype=dtype, shardings=shardings)
    )


def host(folder: str, mesh, dtype) -> Run:
    def run() -> dict[str, np.ndarray]:
        return {name: value.astype(dtype, copy=False) for name, value in tensors(folder)}

    return run


def put(folder: str, mesh, dtype) -> Run:
    """Each tensor on the first axis that the devices divide."""
    axes = ("fsdp", "tensor")
    count = mesh.shape["fsdp"] * mesh.shape["tensor"]

    def run() -> dict[str, jax.Array]:
        arrays = {}
        for name, value in tensors(folder):
            divided = next((i for i, n in enumerate(value.shape) if n % count == 0), None)
            spec = [axes if i == divided else None for i in range(value.ndim)]
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            arrays[name] = jax.device_put(value.astype(dtype, copy=False), sharding)
        return jax.block_until_ready(arrays)

    return run


def by_hand(folder: str, mesh, dtype) -> Run:
    """The model's parameters, one after another: all layers of one on the host, then device_put."""
    config = load_model_config(folder)
    shardings = by_path(param_shardings(abstract_params(config, dtype), mesh))
    layers: dict[str, list] = {}
    for name, (tensor, place) in placed_tensors(folder, config).items():
        layers.setdefault(place.entry.param, []).append((place.layer, name, tensor.file, place))

    def run() -> dict[str, jax.Array]:
        arrays = {}
        with contextlib.ExitStack() as stack:
            files = {
                file: stack.enter_context(safe_open(file, framework="numpy"))
                for file in sorted({item[2] for items in layers.values() for item in items})
            }
            for param, items in layers.items():
                items.sort(key=lambda item: item[0] or 0)
                values = [p.entry.to_param(files[f].get_tensor(n)) for _, n, f, p in items]
                entry = items[0][3].entry
                value = np.stack(values) if entry.layers is not None else values[0]
                arrays[param] = jax.device_put(value.astype(dtype, order="C"), shardings[param])
        return jax.block_until_ready(arrays)

    return run


def tensors(folder: str):
    """(name, numpy array) of every tensor, by the safetensors package."""
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)


WAYS = {"ours": ours, "host": host, "put": put, "by hand": by_hand}
