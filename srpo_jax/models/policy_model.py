"""The whole network of every family: embeddings, vision tower and decoder; prefill and decoding.

The inputs are a dict of arrays (models/inputs.py builds them; T and P are static):
    tokens int32 [B, T]           positions int32 [B, 3, T]     subtree_end int32 [B, T]
    image_index int32 [B, T]: -1 for text, or which of the row's F picture features stands there,
        or -2 for the learned `image_newline` of LLaVA-NeXT
    patches float32 [B, P, patch_dim] and the family's own per-patch arrays (vision.fields)
Each family is checked against its model in transformers to 1e-4 in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.decoder import (
    Constrain,
    Linear,
    RMSNorm,
    no_constraint,
    rope,
    stacked_layers,
)
from srpo_jax.models.blocks.image_layout import NEWLINE, TEXT

Cache = tuple[jax.Array, jax.Array]
Inputs = Mapping[str, jax.Array]
Lookup = Callable[[jax.Array, jax.Array, Any], jax.Array]


def plain_lookup(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """The default `lookup` hook: rows of the table [V, D], where it lies is left to the compiler.

    Ids outside the table are clamped by the gather, never NaN.
    """
    return jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)


def run_whole(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """The default `by_rows` hook: how rows are split is left to the compiler."""
    return function(*arrays)


def _take_features(features: jax.Array, row: jax.Array) -> jax.Array:
    """[B, F, D], int32 [B, T] -> features[b, row[b, t]], [B, T, D]."""
    return jnp.take_along_axis(features, row[..., None], axis=1)


class Embedding(nn.Module):
    """The token table [V, D]."""

    vocab: int
    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, lookup: Lookup = plain_lookup) -> jax.Array:
        shape = (self.vocab, self.width)
        table = self.param("embedding", nn.initializers.normal(0.02), shape, self.param_dtype)
        return lookup(table, tokens, self.dtype)


class PolicyModel(nn.Module):
    """dtype: of the computation; param_dtype: of initialised parameters.

    remat: what a layer keeps for the backward pass, one of decoder.POLICIES.
    constrain(x, kind): sharding hook, kinds "activation" [B,T,D], "heads" [B,T,H,d],
    "ffn" [B,T,F] and "vision" [B,P,E].
    attend: how, and over which mesh, trees and picture segments are attended to.
    lookup(table [V, D], tokens [B, T], dtype): hook for the embeddings of rows; decoding, with its
    few tokens, does without. by_rows(function, *arrays): hook for what is done row by row.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    constrain: Constrain = no_constraint
    attend: Attend = Attend()
    lookup: Lookup = plain_lookup
    by_rows: Callable[..., jax.Array] = run_whole

    def setup(self) -> None:
        text, kinds = self.config.text, (self.dtype, self.param_dtype)
        vocab, width = text.padded_vocab, text.hidden_size
        self.embed = Embedding(vocab, width, *kinds)
        self.vision = self.config.family.tower(
            self.config.vision, width, *kinds, self.remat, self.constrain, self.attend
        )
        self.layers = stacked_layers(text, self.remat)(text, *kinds, self.constrain, self.attend)
        self.norm = RMSNorm(width, text.rms_norm_eps, self.param_dtype)
        if not text.tie_word_embeddings:
            self.lm_head = Linear("btD,DV->btV", (width, vocab), None, *kinds)

    def __call__(self, inputs: Inputs) -> jax.Array:
        """Hidden states [B, T, D] after the final norm. Multiply by `head_matrix` for logits."""
        x, deep = self._embed(inputs)
        x, _ = self.layers(x, self._layer_numbers(), deep, *self._around(inputs))
        hidden = self.norm(x)
        if self.is_initializing() and not self.config.text.tie_word_embeddings:
            self.lm_head(hidden)  # only to create its kernel: the head is applied by the loss
        return hidden

    def prefill(self, inputs: Inputs) -> tuple[jax.Array, Cache]:
        """As __call__, and the cache: k and v of all layers, each [L, B, T, K, d], after RoPE."""
        x, deep = self._embed(inputs)
        x, cache = self.layers.prefill(x, self._layer_numbers(), deep, *self._around(inputs))
        return self.norm(x), cache

    def decode(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        shared: Cache,
        shared_len: jax.Array,
        own: Cache,
        t: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """One new token for each of R branches per row.

        Branch r of row b sees `shared[:, b, :, :shared_len[b, r]]` and its own tokens 0..t[b, r].
        The prefilled row must be causal up to shared_len (causal_row in models/inputs.py is).

        Args:
            tokens: int32 [B, R]; positions: int32 [B, 3, R].
            shared: (k, v) of `prefill`, each as [L, B, K, T, d]; shared_len: int32 [B, R].
            own: (k, v), each [L, B, R, K, M, d], filled up to t - 1; t: int32 [B, R], 0 <= t < M.

        Returns: (hidden [B, R, D] after the final norm, (k, v) of the new token, each
        [L, B, R, K, d], for write_own in models/attention/xla.py to put into own at t).
        """
        x = self.constrain(self.embed(tokens), "activation")
        turned = rope(positions, self.config.text, self.dtype)
        layers = self._layer_numbers()
        x, new = self.layers.decode(x, layers, shared, own, turned, shared_len, t)
        return self.norm(x), new

    def _embed(self, inputs: Inputs) -> tuple[jax.Array, Any]:
        """Token embeddings with the pictures' features in their places, and those for DeepStack:
        None, or (features [N, B, F, D] for the first N layers, image_index [B, T])."""
        x = self.embed(inputs["tokens"], self.lookup)
        index = inputs["image_index"]
        with jax.named_scope("vision"):
            features, deep = self.vision(inputs)
            row = jnp.where(index == NEWLINE, features.shape[1] - 1, jnp.maximum(index, 0))
            shown = self.by_rows(_take_features, features, row)
            x = jnp.where((index == TEXT)[..., None], x, shown)
        x = self.constrain(x, "activation")
        return x, None if deep is None else (deep, index)

    def _around(self, inputs: Inputs) -> tuple[Any, jax.Array]:
        return rope(inputs["positions"], self.config.text, self.dtype), inputs["subtree_end"]

    def _layer_numbers(self) -> jax.Array:
        return jnp.arange(self.config.text.num_layers)


def head_matrix(params: Mapping, config: ModelConfig) -> jax.Array:
    """The [D, V] matrix that maps hidden states to logits, in the parameters' dtype.

    V is padded_vocab: columns from config.text.vocab_size on are no tokens.
    """
    if config.text.tie_word_embeddings:
        return params["embed"]["embedding"].T
    return params["lm_head"]["kernel"]


def init_params(model: PolicyModel, key: jax.Array, dtype: Any = jnp.float32) -> dict:
    """Random parameters: kernels and embeddings normal(0.02), norm scales 1, biases 0."""
    return jax.jit(model.clone(param_dtype=dtype).init)(key, _no_inputs(model.config))["params"]


def _no_inputs(config: ModelConfig) -> Inputs:
    """The smallest inputs there are."""
    vision = config.vision
    ints = {"tokens": (1, 1), "positions": (1, 3, 1), "subtree_end": (1, 1), "image_index": (1, 1)}
    inputs = {name: jnp.zeros(shape, jnp.int32) for name, shape in ints.items()}
    unit = (1, vision.patch_unit)
    inputs["patches"] = jnp.zeros((*unit, vision.patch_dim), jnp.float32)
    for field in vision.fields:
        inputs[field.name] = jnp.zeros((*unit, *field.shape), field.dtype)
    return inputs


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> dict:
    """Shapes and dtypes of all parameters without computing any (seconds at 72B)."""
    model = PolicyModel(config)
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0), dtype))


def abstract_adapters(config: ModelConfig) -> dict:
    """What `Linear` declares of adapters: shapes of rank 0, for every kernel that takes them."""
    init = PolicyModel(config).init
    return jax.eval_shape(lambda: init(jax.random.key(0), _no_inputs(config)))["lora"]
