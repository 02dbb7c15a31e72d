"""Qwen2.5-VL: embeddings, vision tower and decoder joined; prefill and branch decoding.

The inputs are a dict of arrays (models/inputs.py builds them; T and P are static):
    tokens int32 [B, T]           positions int32 [B, 3, T]     subtree_end int32 [B, T]
    image_index int32 [B, T]: -1, or which of the row's P / merge^2 merged patches stands there
    patches float32 [B, P, patch_dim]   patch_pos int32 [B, P, 2]
    window_seg, full_seg int32 [B, P]
Checked against transformers' Qwen2_5_VLForConditionalGeneration to 1e-4 in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from srpo_jax.models.config import ModelConfig
from srpo_jax.models.decoder import Constrain, Linear, RMSNorm, mrope, no_constraint, stacked_layers
from srpo_jax.models.vision import VisionTower

Cache = tuple[jax.Array, jax.Array]
Inputs = Mapping[str, jax.Array]


class Embedding(nn.Module):
    """The token table [V, D]. Ids outside it are clamped by the gather, never NaN."""

    vocab: int
    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        shape = (self.vocab, self.width)
        table = self.param("embedding", nn.initializers.normal(0.02), shape, self.param_dtype)
        return jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype)


class Qwen2_5_VL(nn.Module):
    """dtype: of the computation; param_dtype: of initialised parameters.

    remat: "none" or "full" (keep only each layer's input for the backward pass).
    constrain(x, kind): sharding hook, kinds "activation" [B,T,D], "heads" [B,T,H,d],
    "ffn" [B,T,F] and "vision" [B,P,E].
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    constrain: Constrain = no_constraint

    def setup(self) -> None:
        if self.remat not in ("none", "full"):
            raise ValueError(f'remat must be "none" or "full", not {self.remat!r}')
        text, kinds = self.config.text, (self.dtype, self.param_dtype)
        remat = self.remat == "full"
        self.embed = Embedding(text.vocab_size, text.hidden_size, *kinds)
        self.vision = VisionTower(self.config.vision, *kinds, remat, self.constrain)
        self.layers = stacked_layers(text, remat)(text, *kinds, self.constrain)
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, self.param_dtype)
        if not text.tie_word_embeddings:
            shape = (text.hidden_size, text.vocab_size)
            self.lm_head = Linear("btD,DV->btV", shape, None, *kinds)

    def __call__(self, inputs: Inputs) -> jax.Array:
        """Hidden states [B, T, D] after the final norm, in the compute dtype."""
        x, rope = self._embed(inputs), self._rope(inputs["positions"])
        x, _ = self.layers(x, rope, inputs["subtree_end"])
        hidden = self.norm(x)
        if self.is_initializing() and not self.config.text.tie_word_embeddings:
            self.lm_head(hidden)  # only to create its kernel: the head is applied by the loss
        return hidden

    def prefill(self, inputs: Inputs) -> tuple[jax.Array, Cache]:
        """As __call__, and the cache: k and v of all layers, each [L, B, T, K, d], after RoPE."""
        x, rope = self._embed(inputs), self._rope(inputs["positions"])
        x, cache = self.layers.prefill(x, rope, inputs["subtree_end"])
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

        Branch r of row b sees `shared[:, b, :shared_len[b, r]]` and its own tokens 0..t. The
        prefilled row must be causal up to shared_len (causal_row in models/inputs.py is).

        Args:
            tokens: int32 [B, R]; positions: int32 [B, 3, R].
            shared: (k, v) of `prefill`, each [L, B, T, K, d]; shared_len: int32 [B, R].
            own: (k, v), each [L, B, R, M, K, d], filled up to t - 1; t: int32 scalar, 0 <= t < M.

        Returns: (hidden [B, R, D] after the final norm, own with the new token written at t).
        """
        x = self.constrain(self.embed(tokens), "activation")
        layer = jnp.arange(self.config.text.num_layers)
        carry = (x, *own)
        rope = self._rope(positions)
        (x, own_k, own_v), _ = self.layers.decode(carry, layer, shared, rope, shared_len, t)
        return self.norm(x), (own_k, own_v)

    def _embed(self, inputs: Inputs) -> jax.Array:
        x = self.embed(inputs["tokens"])
        index = inputs["image_index"][..., None]
        patches = [inputs[k] for k in ("patches", "patch_pos", "window_seg", "full_seg")]
        with jax.named_scope("vision"):
            merged = self.vision(*patches)
            shown = jnp.take_along_axis(merged, jnp.maximum(index, 0), axis=1)
        return self.constrain(jnp.where(index >= 0, shown, x), "activation")

    def _rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mrope(positions, self.config.text, self.dtype)


def head_matrix(params: Mapping, config: ModelConfig) -> jax.Array:
    """The [D, V] matrix that maps hidden states to logits, in the parameters' dtype."""
    if config.text.tie_word_embeddings:
        return params["embed"]["embedding"].T
    return params["lm_head"]["kernel"]


def init_params(model: Qwen2_5_VL, key: jax.Array, dtype: Any = jnp.float32) -> dict:
    """Random parameters: kernels and embeddings normal(0.02), norm scales 1, biases 0."""
    unit = model.config.vision.merge_unit
    ints = {
        "tokens": (1, 1), "positions": (1, 3, 1), "subtree_end": (1, 1), "image_index": (1, 1),
        "patch_pos": (1, unit, 2), "window_seg": (1, unit), "full_seg": (1, unit),
    }  # fmt: skip
    inputs = {name: jnp.zeros(shape, jnp.int32) for name, shape in ints.items()}
    inputs["patches"] = jnp.zeros((1, unit, model.config.vision.patch_dim), jnp.float32)
    return jax.jit(model.clone(param_dtype=dtype).init)(key, inputs)["params"]


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> dict:
    """Shapes and dtypes of all parameters without computing any (seconds at 72B)."""
    model = Qwen2_5_VL(config)
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0), dtype))
