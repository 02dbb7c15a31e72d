"""One tensor of a checkpoint and the parameter that it fills: how axes map, both ways.

The decoder's table is here too, because all families share it; what differs between families is in
each family's weights.py.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from srpo_jax.models.blocks.text_config import TextConfig


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One parameter and the tensor (or one tensor per layer) that fills it.

    param: path in the parameter tree, "/" between levels. None: the computation does not use the
        tensor (CLIP's last norm in LLaVA). It must be there, and exports copy it from the source.
    name: the tensor's canonical name; "{i}" stands for the layer when `layers` is set.
    disk: the tensor's shape in the file.
    perm: order in which the file's axes are taken before reshaping to `shape`.
    shape: shape of the parameter, without the leading layer axis.
    layers: length of the layer axis (axis 0 of the parameter), or None if there is none.
    pad: (axis of `shape`, length in memory) where that is longer than in the file: rows of the
        vocabulary that are added so that a mesh divides it. They are 0 and never exported.
    """

    param: str | None
    name: str
    disk: tuple[int, ...]
    perm: tuple[int, ...]
    shape: tuple[int, ...]
    layers: int | None = None
    pad: tuple[int, int] | None = None

    def to_param(self, tensor: np.ndarray) -> np.ndarray:
        """Tensor of shape `disk` -> slice of shape `shape`. A view wherever numpy allows one."""
        return tensor.transpose(self.perm).reshape(self.shape)

    def to_disk(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_param`, without padding. May be a non-contiguous view."""
        if self.pad is not None:
            axis, _ = self.pad
            value = value[tuple(slice(n) for n in self.shape[: axis + 1])]
        permuted = value.reshape([self.disk[axis] for axis in self.perm])
        return permuted.transpose(np.argsort(self.perm))

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter, with the layer axis and padding."""
        shape = list(self.shape)
        if self.pad is not None:
            axis, length = self.pad
            shape[axis] = length
        return tuple(shape) if self.layers is None else (self.layers, *shape)


def vector(param, name, shape, layers=None) -> TensorSpec:
    """A tensor of one axis (bias, norm scale), reshaped."""
    return TensorSpec(param, name, (math.prod(shape),), (0,), tuple(shape), layers)


def linear(param, name, out, into, shape, layers=None, pad=None) -> TensorSpec:
    """A linear layer's weight: [out, in] in the file, input axes first in the parameter."""
    return TensorSpec(param, name, (out, into), (1, 0), tuple(shape), layers, pad)


def plain(param, name, shape, layers=None) -> TensorSpec:
    """A tensor that has the parameter's own axes."""
    return TensorSpec(param, name, tuple(shape), tuple(range(len(shape))), tuple(shape), layers)


def unused(name, disk, layers=None) -> TensorSpec:
    """A tensor that the computation does not use."""
    return TensorSpec(None, name, tuple(disk), tuple(range(len(disk))), tuple(disk), layers)


def norm(param, name, width, layers=None) -> list[TensorSpec]:
    """Scale and bias of a layer norm."""
    return [
        vector(f"{param}/scale", f"{name}.weight", (width,), layers),
        vector(f"{param}/bias", f"{name}.bias", (width,), layers),
    ]


def dense(param, name, into, out, layers=None, split_in=None, split_out=None) -> list[TensorSpec]:
    """Kernel and bias of a linear layer; split_*: the parameter's axes where they are several."""
    split_in, split_out = split_in or (into,), split_out or (out,)
    return [
        linear(f"{param}/kernel", f"{name}.weight", out, into, (*split_in, *split_out), layers),
        vector(f"{param}/bias", f"{name}.bias", split_out, layers),
    ]


def decoder(text: TextConfig, prefix: str, head: str) -> list[TensorSpec]:
    """The decoder that all families share. prefix: of its names ("model."); head: name of the
    output head's tensor."""
    t = text
    layers, width, ffn, d = t.num_layers, t.hidden_size, t.intermediate_size, t.head_dim
    vocab = (t.vocab_size, width)
    padded = t.padded_vocab if t.padded_vocab > t.vocab_size else None
    entries = [
        TensorSpec(
            EMBEDDING,
            prefix + "embed_tokens.weight",
            vocab,
            (0, 1),
            vocab,
            pad=(0, padded) if padded else None,
        ),
        vector("norm/scale", prefix + "norm.weight", (width,)),
    ]
    block = prefix + "layers.{i}."
    entries += [
        vector("layers/attn_norm/scale", block + "input_layernorm.weight", (width,), layers),
        vector(
            "layers/mlp_norm/scale", block + "post_attention_layernorm.weight", (width,), layers
        ),
    ]
    for short, heads in (("q", t.num_heads), ("k", t.num_kv_heads), ("v", t.num_kv_heads)):
        param, name = f"layers/attn/{short}/", f"{block}self_attn.{short}_proj."
        entries.append(
            linear(param + "kernel", name + "weight", heads * d, width, (width, heads, d), layers)
        )
        if t.qkv_bias:
            entries.append(vector(param + "bias", name + "bias", (heads, d), layers))
    if t.qk_norm:
        entries += [
            vector(f"layers/attn/{x}_norm/scale", f"{block}self_attn.{x}_norm.weight", (d,), layers)
            for x in "qk"
        ]
    entries.append(
        linear(
            "layers/attn/o/kernel",
            block + "self_attn.o_proj.weight",
            width,
            t.num_heads * d,
            (t.num_heads, d, width),
            layers,
        )
    )
    for short, into, out in (("gate", width, ffn), ("up", width, ffn), ("down", ffn, width)):
        entries.append(
            linear(
                f"layers/mlp/{short}/kernel",
                f"{block}mlp.{short}_proj.weight",
                out,
                into,
                (into, out),
                layers,
            )
        )
    if not t.tie_word_embeddings:
        entries.append(
            linear(
                "lm_head/kernel",
                head,
                t.vocab_size,
                width,
                (width, t.vocab_size),
                pad=padded and (1, padded),
            )
        )
    return entries


EMBEDDING = "embed/embedding"
