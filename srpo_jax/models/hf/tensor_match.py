"""Checkpoint tensor names <-> parameter paths: one declarative, invertible table per model family.

The table is total in both directions: `match` refuses a checkpoint that has a tensor without a
place, a place without a tensor, a wrong shape or two tensors for one place, and names them all in
one error. The table is the family's, see its weights.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import EMBEDDING, TensorSpec


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where one tensor of a checkpoint goes: an entry, and the layer if the entry is stacked."""

    entry: TensorSpec
    layer: int | None


def table(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of the model that `config` describes, with the parameter that it fills."""
    return tuple(config.family.tensors(config))


def canonical(name: str, config: ModelConfig) -> str:
    """A tensor's name in the family's canonical spelling, which is the Hub's; unknown names come
    back unchanged."""
    for pattern, replacement in config.family.spellings:
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
    head = config.family.head
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
