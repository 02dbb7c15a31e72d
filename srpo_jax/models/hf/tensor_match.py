"""Checkpoint tensor names <-> parameter paths: one declarative, invertible table per model family.

The table is total in both directions: `match` refuses a checkpoint that has a tensor without a
place, a place without a tensor, a wrong shape or two tensors for one place, and names them all in
one error. A new family is a module in hf/tables/ and a line in `TABLES`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from types import ModuleType

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import EMBEDDING, TensorSpec
from srpo_jax.models.families.internvl import weights as internvl
from srpo_jax.models.families.llava import weights as llava
from srpo_jax.models.families.qwen2_5_vl import weights as qwen2_5_vl
from srpo_jax.models.families.qwen3_vl import weights as qwen3_vl
from srpo_jax.models.families.smolvlm import weights as smolvlm

# model_type -> module with table(config), SPELLINGS and HEAD. A spelling rewrites the start of a
# name to the canonical one, which is the Hub's; the first that fits counts.
TABLES: dict[str, ModuleType] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": smolvlm,
    "internvl": internvl,
    "llava": llava,
    "llava_next": llava,
}


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where one tensor of a checkpoint goes: an entry, and the layer if the entry is stacked."""

    entry: TensorSpec
    layer: int | None


def table(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of the model that `config` describes, with the parameter that it fills."""
    return tuple(_family(config).table(config))


def head_name(config: ModelConfig) -> str:
    """Canonical name of the output head's tensor."""
    return _family(config).HEAD


def canonical(name: str, config: ModelConfig) -> str:
    """A tensor's name in the family's canonical spelling; unknown names come back unchanged."""
    for pattern, replacement in _family(config).SPELLINGS:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def match(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str
) -> dict[str, TensorPlace]:
    """Give every tensor of a checkpoint its place.

    shapes: tensor name as it stands in the files -> shape. where: shown in the error.
    Returns source name -> Place, for every name of `shapes`. A head in the file of a model whose
    config ties it to the embedding is placed on the embedding (the caller checks that it is equal).
    Raises UserError that names all misfits (the first five of each kind).
    """
    places: dict[str, TensorPlace] = {}
    for entry in table(config):
        for layer in range(entry.layers) if entry.layers is not None else (None,):
            places[entry.name.format(i=layer)] = TensorPlace(entry, layer)
    expected = set(places)
    head = head_name(config)
    if head not in places:
        embedding = next(p.entry for p in places.values() if p.entry.param == EMBEDDING)
        places[head] = TensorPlace(embedding, None)

    by_canonical: dict[str, list[str]] = {}
    for name in sorted(shapes):
        by_canonical.setdefault(canonical(name, config), []).append(name)
    unknown = [n for c, names in by_canonical.items() if c not in places for n in names]
    known = {c: names for c, names in by_canonical.items() if c in places}
    misfits = {
        "no parameter for": unknown,
        "not in the checkpoint": sorted(expected - set(by_canonical)),
        "two tensors for one place": [" = ".join(n) for n in known.values() if len(n) > 1],
        "wrong shape": [
            f"{name} {list(shapes[name])}, not {list(places[c].entry.disk)}"
            for c, names in known.items()
            for name in names
            if tuple(shapes[name]) != places[c].entry.disk
        ],
    }
    faults = [f"{kind}: {shorten(found)}" for kind, found in misfits.items() if found]
    if faults:
        raise UserError(
            f"{where}: the tensors do not fit the {config.model_type} model of its config.json; "
            + "; ".join(faults)
        )
    return {names[0]: places[c] for c, names in known.items()}


def shorten(items: Iterable[str], keep: int = 5) -> str:
    """The first few items, and how many there are if that is more."""
    items = list(items)
    text = ", ".join(items[:keep])
    return text if len(items) <= keep else f"{text}, ... ({len(items)} in all)"


def _family(config: ModelConfig) -> ModuleType:
    if config.model_type not in TABLES:
        raise UserError(
            f"model_type {config.model_type!r} has no table of tensor names; "
            f"supported: {', '.join(sorted(TABLES))}"
        )
    return TABLES[config.model_type]
