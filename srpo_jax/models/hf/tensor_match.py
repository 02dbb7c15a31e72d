"""Checkpoint tensor names <-> parameter paths: one declarative, invertible table per model family.

The table is total in both directions: `match` refuses a checkpoint that has a tensor without a
place, a place without a tensor, a wrong shape or two tensors for one place, and names them all in
one error. The table is the family's, see its weights.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from srpo_jax.errors import UserError, one_line
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.tensor_spec import EMBEDDING, TensorSpec, unused

MOST_TENSORS = 50_000  # of a model; the largest that is supported has 2,000
# Buffers that older versions of transformers saved, and that newer ones compute instead of reading.
LEFTOVER = re.compile(r"(^|\.)(rotary(_pos)?_emb\.(original_)?inv_freq|position_ids)$")
# Names by which it can be told what a checkpoint is, and what to do then.
TELLING = (
    (
        re.compile(r"^base_model\.model\.|\.lora_[a-zA-Z_]+(\.|$)|\.base_layer\."),
        "these are adapters: merge them into their model first, with peft's merge_and_unload",
    ),
    (
        re.compile(
            r"\.(weight_(scale|packed|zero_point|format|shape)\w*|input_scale|qweight|qzeros|scales"
            r"|g_idx|SCB|(nested_)?(absmax|quant_map))$|\.quant_state\."
        ),
        "the weights are quantised: take the model that they were made of",
    ),
    (
        re.compile(r"^(module|_orig_mod|_fsdp_wrapped_module)\."),
        "these are the names inside of a training wrapper: save the model without it",
    ),
)


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
    Buffers that are computed (LEFTOVER) get a place of their own, of no parameter.
    Raises UserError that names all misfits (the first five of each kind), and for a config with
    more than MOST_TENSORS.
    """
    places: dict[str, TensorPlace] = {}
    entries = table(config)
    count = sum(entry.layers or 1 for entry in entries)
    if count > MOST_TENSORS:
        raise UserError(f"{where}: by config.json the model has {count} tensors, which is absurd")
    for entry in entries:
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
    buffers = [name for name in unknown if LEFTOVER.search(name)]
    unknown = [name for name in unknown if not LEFTOVER.search(name)]
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
    untied = "; without a head of its own a model needs tie_word_embeddings true in config.json"
    if faults:
        raise UserError(
            f"{where}: the tensors do not fit the {config.model_type} model of its config.json; "
            + "; ".join(faults)
            + advice(unknown)
            + (untied if head in misfits["not in the checkpoint"] else "")
        )
    found = {names[0]: places[c] for c, names in known.items()}
    return found | {name: TensorPlace(unused(name, shapes[name]), None) for name in buffers}


def advice(names: Iterable[str]) -> str:
    """What the names of tensors without a place tell of the checkpoint: "" or "; ..."."""
    names = list(names)
    said = (text for pattern, text in TELLING if any(map(pattern.search, names)))
    return "".join(f"; {text}" for text in said)


def shorten(items: Iterable[str], keep: int = 5) -> str:
    """The first few items, each on one line of 200 characters at most, and how many there are if
    that is more."""
    items = list(items)
    text = ", ".join(one_line(item, 200) for item in items[:keep])
    return text if len(items) <= keep else f"{text}, ... ({len(items)} in all)"
