"""Fixture: the same checkpoint under the tensor names of transformers 4.52 and later."""

from __future__ import annotations

import json
import pathlib

from safetensors.numpy import load_file, save_file

from tests.support.tiny import newer_name


def rename_tensors(folder: pathlib.Path, rename=newer_name) -> pathlib.Path:
    """Renames every tensor of a checkpoint folder in place, in its files and its index."""
    for file in folder.glob("*.safetensors"):
        tensors = {rename(name): value for name, value in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {rename(n): f for n, f in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2) + "\n")
    return folder
