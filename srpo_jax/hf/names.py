"""Checkpoint tensor names <-> parameter paths: one declarative, invertible table per model family.

A table is a tuple of `Entry`. Each entry says which parameter a tensor fills, and how its axes map.
The table is total in both directions: `match` refuses a checkpoint that has a tensor without a
parameter, a parameter without a tensor, a wrong shape or two tensors for one place, and names them
all in one error. A new family is a new table function, a list of name spellings, and a line in
`FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter and the tensor (or one tensor per layer) that fills it.

    param: path in the parameter tree, "/" between levels.
    name: the tensor's canonical name; "{i}" stands for the layer when `layers` is set.
    disk: the tensor's shape in the file.
    perm: order in which the file's axes are taken before reshaping to `shape`.
    shape: shape of the parameter, without the leading layer axis.
    layers: length of the layer axis (axis 0 of the parameter), or None if there is none.
    """

    param: str
    name: str
    disk: tuple[int, ...]
    perm: tuple[int, ...]
    shape: tuple[int, ...]
    layers: int | None = None

    def to_param(self, tensor: np.ndarray) -> np.ndarray:
        """Tensor of shape `disk` -> slice of shape `shape`. A view wherever numpy allows one."""
        return tensor.transpose(self.perm).reshape(self.shape)

    def to_disk(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_param`. The result may be a non-contiguous view."""
        permuted = value.reshape([self.disk[axis] for axis in self.perm])
        return permuted.transpose(np.argsort(self.perm))

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter, with the layer axis."""
        return self.shape if self.layers is None else (self.layers, *self.shape)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one tensor of a checkpoint goes: an entry, and the layer if the entry is stacked."""

    entry: Entry
    layer: int | None


def _vector(param, name, shape, layers=None):
    """A tensor of one axis (bias, norm scale), reshaped."""
    return Entry(param, name, (math.prod(shape),), (0,), tuple(shape), layers)


def _linear(param, name, out, into, shape, layers=None):
    """A linear layer's weight: [out, in] in the file, input axes first in the parameter."""
    return Entry(param, name, (out, into), (1, 0), tuple(shape), layers)


def _qwen2_decoder(config: ModelConfig) -> list[Entry]:
    t = config.text
    layers, width, ffn, d = t.num_layers, t.hidden_size, t.intermediate_size, t.head_dim
    entries = [
        Entry(
            "embed/embedding", "model.embed_tokens.weight",
            (t.vocab_size, width), (0, 1), (t.vocab_size, width),
        ),
        _vector("norm/scale", "model.norm.weight", (width,)),
    ]
    block = "model.layers.{i}."
    entries += [
        _vector("layers/attn_norm/scale", block + "input_layernorm.weight", (width,), layers),
        _vector(
            "layers/mlp_norm/scale", block + "post_attention_layernorm.weight", (width,), layers
        ),
    ]
    for short, heads in (("q", t.num_heads), ("k", t.num_kv_heads), ("v", t.num_kv_heads)):
        param, name = f"layers/attn/{short}/", f"{block}self_attn.{short}_proj."
        entries.append(
            _linear(param + "kernel", name + "weight", heads * d, width, (width, heads, d), layers)
        )
        if t.qkv_bias:
            entries.append(_vector(param + "bias", name + "bias", (heads, d), layers))
    entries.append(
        _linear(
            "layers/attn/o/kernel", block + "self_attn.o_proj.weight",
            width, t.num_heads * d, (t.num_heads, d, width), layers,
        )
    )
    for short, into, out in (("gate", width, ffn), ("up", width, ffn), ("down", ffn, width)):
        entries.append(
            _linear(
                f"layers/mlp/{short}/kernel", f"{block}mlp.{short}_proj.weight",
                out, into, (into, out), layers,
            )
        )
    if not t.tie_word_embeddings:
        entries.append(
            _linear("lm_head/kernel", HEAD, t.vocab_size, width, (width, t.vocab_size))
        )
    return entries


def _qwen2_5_vision(config: ModelConfig) -> list[Entry]:
    v = config.vision
    depth, width, heads, ffn = v.depth, v.hidden_size, v.num_heads, v.intermediate_size
    d = width // heads
    patch = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    merged = width * v.spatial_merge_size**2
    entries = [
        # A convolution whose stride is its kernel: a matrix product over flattened (C, T, p, p).
        Entry(
            "vision/patch_embed/kernel", "visual.patch_embed.proj.weight",
            (width, *patch), (1, 2, 3, 4, 0), (math.prod(patch), width),
        ),
    ]
    block, param = "visual.blocks.{i}.", "vision/blocks/"
    for norm in ("norm1", "norm2"):
        entries.append(_vector(f"{param}{norm}/scale", f"{block}{norm}.weight", (width,), depth))
    for path, name, into, out, split_in, split_out in (
        ("attn/qkv", "attn.qkv", width, 3 * width, (width,), (3, heads, d)),
        ("attn/proj", "attn.proj", width, width, (heads, d), (width,)),
        ("mlp/gate", "mlp.gate_proj", width, ffn, (width,), (ffn,)),
        ("mlp/up", "mlp.up_proj", width, ffn, (width,), (ffn,)),
        ("mlp/down", "mlp.down_proj", ffn, width, (ffn,), (width,)),
    ):
        kernel = split_in + split_out
        entries += [
            _linear(f"{param}{path}/kernel", f"{block}{name}.weight", out, into, kernel, depth),
            _vector(f"{param}{path}/bias", f"{block}{name}.bias", split_out, depth),
        ]
    entries.append(_vector("vision/merger/norm/scale", "visual.merger.ln_q.weight", (width,)))
    for path, name, out in (("fc1", "mlp.0", merged), ("fc2", "mlp.2", v.out_hidden_size)):
        param, name = f"vision/merger/{path}/", f"visual.merger.{name}."
        entries += [
            _linear(param + "kernel", name + "weight", out, merged, (merged, out)),
            _vector(param + "bias", name + "bias", (out,)),
        ]
    return entries


def _qwen2_5_vl(config: ModelConfig) -> list[Entry]:
    return _qwen2_decoder(config) + _qwen2_5_vision(config)


HEAD = "lm_head.weight"
EMBEDDING = "embed/embedding"

# model_type -> (table, spellings). A spelling rewrites the start of a name to the canonical one,
# which is the Hub's; the others are what transformers has written in between (4.52 and later).
FAMILIES: dict[str, tuple[Callable[[ModelConfig], list[Entry]], tuple[tuple[str, str], ...]]] = {
    "qwen2_5_vl": (
        _qwen2_5_vl,
        ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")),
    ),
}


def table(config: ModelConfig) -> tuple[Entry, ...]:
    """Every parameter of the model that `config` describes, with the tensors that fill it."""
    build, _ = _family(config)
    return tuple(build(config))


def canonical(name: str, config: ModelConfig) -> str:
    """A tensor's name in the family's canonical spelling; unknown names come back unchanged."""
    _, spellings = _family(config)
    for pattern, replacement in spellings:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def match(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str
) -> dict[str, Place]:
    """Give every tensor of a checkpoint its place.

    shapes: tensor name as it stands in the files -> shape. where: shown in the error.
    Returns source name -> Place, for every name of `shapes`. A head in the file of a model whose
    config ties it to the embedding is placed on the embedding (the caller checks that it is equal).
    Raises UserError that names all misfits (the first five of each kind).
    """
    places: dict[str, Place] = {}
    for entry in table(config):
        for layer in range(entry.layers) if entry.layers is not None else (None,):
            places[entry.name.format(i=layer)] = Place(entry, layer)
    expected = set(places)
    if HEAD not in places:
        embedding = next(p.entry for p in places.values() if p.entry.param == EMBEDDING)
        places[HEAD] = Place(embedding, None)

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


def _family(config: ModelConfig):
    if config.model_type not in FAMILIES:
        raise UserError(
            f"model_type {config.model_type!r} has no table of tensor names; "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[config.model_type]
