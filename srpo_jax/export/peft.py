"""Write LoRA adapters as `peft` does, to be loaded onto the model in transformers.

    adapter_model.safetensors  lora_A [r, in] and lora_B [out, r] of every adapted module, float32
    adapter_config.json        what peft.LoraConfig reads
    README.md                  the model card

peft names modules as transformers 5 has them in memory, which is not always what the files of the
checkpoint call them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from srpo_jax.export.hf_checkpoint import new_folder, nonfinite, refuse
from srpo_jax.files import sync
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.hf import tensor_match


def export_adapters(
    adapters: Mapping[str, np.ndarray],
    source_dir: str | pathlib.Path,
    out_dir: str | pathlib.Path,
    config: ModelConfig,
    *,
    settings: Mapping[str, Any],
    model_card: str,
    check: Callable[[pathlib.Path], None] | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Write the folder `out_dir`, complete or not at all. With several processes all must call.

    adapters: "path/lora_a" and "path/lora_b" -> float32, see lora.py. source_dir: the checkpoint
    that they belong to. settings: r, lora_alpha and others of peft.LoraConfig. check: is given the
    complete folder before it gets its name. allow_nonfinite: write numbers that are none, too.
    Raises UserError if out_dir exists and is not empty, or lies in source_dir, or if a value is not
    finite.
    """
    source = pathlib.Path(source_dir)
    with new_folder(out_dir, source) as folder:
        if folder is None:
            return
        tensors = adapter_tensors(adapters, config)
        faults = [fault for name, value in tensors.items() for fault in nonfinite(name, value)]
        if not allow_nonfinite:
            refuse(faults)
        modules = sorted({name.split(".lora_")[0].removeprefix(PREFIX) for name in tensors})
        content = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": source.resolve().name,  # no path of this machine
            "inference_mode": True,
            "target_modules": modules,  # whole names: exactly these, whatever else ends like them
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            **settings,
        }
        files = {
            "adapter_model.safetensors": save(tensors, {"format": "pt"}),
            "adapter_config.json": (json.dumps(content, indent=2) + "\n").encode(),
            "README.md": model_card.encode(),
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
            sync(folder / name)
        if check is not None:
            check(folder)


PREFIX = "base_model.model."  # what peft puts before the names of the model that it wraps


def adapter_tensors(
    adapters: Mapping[str, np.ndarray], config: ModelConfig
) -> dict[str, np.ndarray]:
    """peft's tensors of the adapters, by peft's names."""
    tensors = {}
    for entry in tensor_match.table(config):
        path = (entry.param or "").removesuffix("/kernel")
        if f"{path}/lora_a" not in adapters:
            continue
        pair = [adapters[f"{path}/{name}"] for name in ("lora_a", "lora_b")]
        for layer in (None,) if entry.layers is None else range(entry.layers):
            a, b = pair if layer is None else (stack[layer] for stack in pair)
            rank = a.shape[-1]
            module = PREFIX + module_name(entry.name.format(i=layer), config)
            # A convolution's A has the kernel's size, its B is a convolution of size 1.
            thin = dataclasses.replace(entry, disk=(rank, *entry.disk[1:]))
            ones = (1,) * (len(entry.disk) - 2)
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(thin.to_disk(a))
            b = np.ascontiguousarray(b.reshape(rank, -1).T)
            tensors[f"{module}.lora_B.weight"] = b.reshape(*b.shape, *ones)
    return tensors


def module_name(name: str, config: ModelConfig) -> str:
    """The name in transformers' model of the module whose weight the canonical `name` is."""
    for start, other in config.family.in_memory:
        if name.startswith(start):
            name = other + name.removeprefix(start)
            break
    return name.removesuffix(".weight")
