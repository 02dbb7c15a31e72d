"""The decoder that the families share: pre-norm, grouped queries, M-RoPE, SwiGLU; scanned layers.

Linen as a thin shell: a module owns its arrays (`self.param`) and an einsum, nothing else. Layers
are stacked on axis 0 of every parameter and run under `nn.scan`: one layer is compiled, not L.
Dimension letters: see README.md in models/.

What a layer keeps for the backward pass has a name, `model.remat`, the same for decoder and tower:

none       everything that its backward pass reads: the fastest, the most memory
dots       results of products with weights; attention, norms and activations are computed again
attention  its input and the attention's result (and log-sum-exp): all but attention again
offload    only its input, and that in the host's memory until it is needed: all again
full       only its input: all again

A policy changes memory and time, never what is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from srpo_jax.errors import UserError
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.attention.xla import ATTENTION, branch_attention
from srpo_jax.models.blocks.text_config import TextConfig

Constrain = Callable[[jax.Array, str], jax.Array]
Rope = tuple[jax.Array, jax.Array]
Deep = tuple[jax.Array, jax.Array] | None
STACKED: dict[Any, Any] = {
    "params": 0,
    "lora": 0,
}  # axis of the layers in each collection of variables


POLICIES = ("none", "full", "dots", "attention", "offload")
INPUT = "layer_input"  # the name of a layer's input for the policy "offload"
HOST = "pinned_host"  # jax's name of the memory that it is moved to


def no_constraint(x: jax.Array, kind: str) -> jax.Array:
    """The default `constrain` hook: activations are left to the compiler."""
    del kind
    return x


class Linear(nn.Module):
    """`einsum(equation, x, kernel) [+ bias]`. `bias` is the bias shape, or None for no bias.

    The kernel's letters in the equation: those that input and output share, then the input's, then
    the output's. The collection "lora" may hold adapters of the kernel (srpo_jax/train/lora.py).
    """

    equation: str
    shape: tuple[int, ...]
    bias: tuple[int, ...] | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, self.shape, self.param_dtype)
        y = jnp.einsum(self.equation, x, kernel.astype(self.dtype))
        if self.bias is not None:
            bias = self.param("bias", nn.initializers.zeros, self.bias, self.param_dtype)
            y = y + bias.astype(self.dtype)
        if self.is_initializing() and self.is_mutable_collection("lora"):
            self._declare_adapters()
        elif self.has_variable("lora", "lora_a"):
            y = y + self._adapters(x)
        return y

    def _letters(self) -> tuple[str, str, str, str, str]:
        """Letters of x and of y; of the kernel's, those of both, of x alone and of y alone."""
        x, kernel, y = re.split(",|->", self.equation)
        shared = "".join(k for k in kernel if k in x and k in y)
        inner = "".join(k for k in kernel if k not in y)
        outer = "".join(k for k in kernel if k not in x)
        return x, y, shared, inner, outer

    def _declare_adapters(self) -> None:
        """Adapters of rank 0: their shapes say which ones fit here, stacked over the layers."""
        _, _, shared, inner, outer = self._letters()
        size = dict(zip(shared + inner + outer, self.shape, strict=True))
        for name, letters in (("lora_a", shared + inner + "r"), ("lora_b", shared + "r" + outer)):
            shape = [size.get(letter, 0) for letter in letters]
            self.variable("lora", name, jnp.zeros, shape, jnp.float32)
        self.variable("lora", "keep", jnp.ones, ())

    def _adapters(self, x: jax.Array) -> jax.Array:
        """dropout(x) A B, never A B: two thin products. All factors are in B already."""
        rows, out, shared, inner, outer = self._letters()
        if self.has_variable("lora", "dropout"):
            keep = self.get_variable("lora", "keep")
            kept = jax.random.bernoulli(self.get_variable("lora", "dropout"), keep, x.shape)
            x = jnp.where(kept, x, 0)
        a, b = (self.get_variable("lora", name).astype(self.dtype) for name in ("lora_a", "lora_b"))
        thin = "".join(letter for letter in rows if letter not in inner) + "r"
        x = jnp.einsum(f"{rows},{shared}{inner}r->{thin}", x, a)
        return jnp.einsum(f"{thin},{shared}r{outer}->{out}", x, b)


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times the scale in x's dtype (transformers' order)."""

    size: int
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (self.size,), self.param_dtype)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        # Broadcast in one go, so that its gradient is one sum over rows and tokens: for a batch of
        # one row XLA's CPU back end takes 50 times as long for the sum over tokens (jax 0.10.2).
        return wide.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


class LayerNorm(nn.Module):
    """Layer norm over the last axis with scale and bias; in float32, cast back at the end."""

    size: int
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size,)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        wide = wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return wide.astype(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); `bias` adds a bias to all three (vision) or to none (text)."""

    width: int
    ffn: int
    bias: bool
    dtype: Any
    param_dtype: Any
    constrain: Constrain = no_constraint

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def linear(name: str, equation: str, into: int, out: int) -> Linear:
            bias = (out,) if self.bias else None
            return Linear(equation, (into, out), bias, self.dtype, self.param_dtype, name=name)

        with jax.named_scope("mlp"):
            gate = linear("gate", "btD,DF->btF", self.width, self.ffn)(x)
            up = linear("up", "btD,DF->btF", self.width, self.ffn)(x)
            hidden = self.constrain(nn.silu(gate) * up, "ffn")
            return linear("down", "btF,FD->btD", self.ffn, self.width)(hidden)


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotary embedding of x [B, T, H, d] by (cos, sin), each [B, T, d/2]; halves, not pairs."""
    cos, sin = (table[:, :, None, :] for table in rope)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rope(positions: jax.Array, config: TextConfig, dtype: Any) -> Rope:
    """(cos, sin) [B, T, d/2] for positions int32 [B, 3, T] (time, height, width).

    Frequency c is theta^(-2c/d). Which position turns it is config.rope: "1d" the first; "mrope"
    time for the first mrope_section[0] frequencies, height for the next, width for the last;
    "mrope_interleaved" height for frequencies 1, 4, 7, ... and width for 2, 5, 8, ..., as many as
    their sections say, time for the rest. Computed in float32, then cast, as transformers does.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequency = jnp.asarray(1.0 / config.rope_theta**exponent, jnp.float32)
    axis = np.zeros(config.head_dim // 2, np.int32)
    if config.rope == "mrope":
        axis = np.repeat(np.arange(3), config.mrope_section)
    elif config.rope == "mrope_interleaved":
        for which in (1, 2):
            axis[which : 3 * config.mrope_section[which] : 3] = which
    angle = positions.astype(jnp.float32)[:, axis, :].swapaxes(1, 2) * frequency
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


class Attention(nn.Module):
    """Projections and RoPE around the three attention forms; see DecoderLayer."""

    config: TextConfig
    dtype: Any
    param_dtype: Any
    constrain: Constrain

    def setup(self) -> None:
        c = self.config
        kinds = (self.dtype, self.param_dtype)

        def project(heads: int) -> Linear:
            bias = (heads, c.head_dim) if c.qkv_bias else None
            return Linear("btD,Dhd->bthd", (c.hidden_size, heads, c.head_dim), bias, *kinds)

        self.q = project(c.num_heads)
        self.k = project(c.num_kv_heads)
        self.v = project(c.num_kv_heads)
        self.o = Linear("bthd,hdD->btD", (c.num_heads, c.head_dim, c.hidden_size), None, *kinds)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps, self.param_dtype)
            self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps, self.param_dtype)

    @jax.named_scope("attention")
    def qkv(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.constrain(rotate(q, rope), "heads"), rotate(k, rope), v

    @jax.named_scope("attention")
    def out(self, heads: jax.Array) -> jax.Array:
        return self.o(self.constrain(heads, "heads"))


class DecoderLayer(nn.Module):
    """One layer in three forms over the same parameters, each shaped for `nn.scan`.

    x and the residual stream are [B, T, D] in the compute dtype. layer: its number, int32.
    deep: None, or (features [N, B, F, D], image_index [B, T]): DeepStack adds features[layer] to
    the picture tokens after each of the first N layers.
    """

    config: TextConfig
    dtype: Any
    param_dtype: Any
    constrain: Constrain
    attend: Attend

    def setup(self) -> None:
        c = self.config
        self.attn_norm = RMSNorm(c.hidden_size, c.rms_norm_eps, self.param_dtype)
        self.attn = Attention(c, self.dtype, self.param_dtype, self.constrain)
        self.mlp_norm = RMSNorm(c.hidden_size, c.rms_norm_eps, self.param_dtype)
        self.mlp = SwiGLU(
            c.hidden_size, c.intermediate_size, False, self.dtype, self.param_dtype, self.constrain
        )

    def __call__(self, x: jax.Array, layer, deep: Deep, rope: Rope, subtree_end: jax.Array):
        """x -> x, nothing kept: training and scoring."""
        return self.prefill(layer_input(x), layer, deep, rope, subtree_end)[0], None

    def prefill(self, x: jax.Array, layer, deep: Deep, rope: Rope, subtree_end: jax.Array):
        """x -> x, and this layer's (k, v) [B, T, K, d] after RoPE."""
        q, k, v = self.attn.qkv(self.attn_norm(x), rope)
        x = self._finish(x, self.attend.tree(q, k, v, subtree_end))
        if deep is not None:
            x = self.constrain(_add_deep(x, layer, *deep), "activation")
        return x, (k, v)

    def decode(self, x, layer, shared, own, rope: Rope, shared_len: jax.Array, t: jax.Array):
        """One token per branch: x [B, R, D] -> x, and this layer's (k, v) [B, R, K, d] of it.

        own: k and v of ALL layers [L, B, R, K, M, d], only read: carried and written here, or as
        scanned inputs, they would be copied, or written in L small parts.
        """
        q, k, v = self.attn.qkv(self.attn_norm(x), rope)
        (shared_k, shared_v), (own_k, own_v) = shared, own
        heads = branch_attention(q, shared_k, shared_v, shared_len, own_k, own_v, k, v, layer, t)
        return self._finish(x, heads), (k, v)

    def _finish(self, x: jax.Array, heads: jax.Array) -> jax.Array:
        x = self.constrain(x + self.attn.out(heads), "activation")
        with jax.named_scope("ffn"):
            return self.constrain(x + self.mlp(self.mlp_norm(x)), "activation")


def _add_deep(x: jax.Array, layer: jax.Array, features: jax.Array, index: jax.Array) -> jax.Array:
    """x + features[layer] at the picture tokens, for the first len(features) layers."""

    def add(x: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_index_in_dim(features, layer, keepdims=False)
        own = jnp.take_along_axis(own, jnp.maximum(index, 0)[..., None], axis=1)
        return x + jnp.where((index >= 0)[..., None], own, 0)

    return jax.lax.cond(layer < features.shape[0], add, lambda x: x, x)


def stacked_layers(config: TextConfig, remat: str) -> type[nn.Module]:
    """DecoderLayer over all layers. remat: what each keeps for the backward pass."""
    layer = with_remat(DecoderLayer, remat)
    common = dict(variable_axes=STACKED, split_rngs={"params": True}, length=config.num_layers)
    over_rows = dict(common, in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast))
    over_branches = dict(common, in_axes=(0, 0, *[nn.broadcast] * 4))
    methods = {"__call__": over_rows, "prefill": over_rows, "decode": over_branches}
    return nn.scan(layer, methods=methods)


def layer_input(x: jax.Array) -> jax.Array:
    """x, under the name by which "offload" knows it. Each layer's first act."""
    return checkpoint_name(x, INPUT)


def with_remat(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module `layer`, to be scanned, under one of POLICIES."""
    if policy not in POLICIES:
        raise ValueError(f"remat must be one of {', '.join(POLICIES)}, not {policy!r}")
    if policy == "none":
        return layer
    kept = jax.checkpoint_policies
    saveable = {
        "full": None,
        "dots": kept.dots_with_no_batch_dims_saveable,
        "attention": kept.save_only_these_names(ATTENTION),
        "offload": kept.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst=HOST,
        ),
    }
    # The scan already keeps the compiler from merging the two computations.
    return nn.remat(layer, policy=saveable[policy], prevent_cse=False)


def check_host_memory(policy: str, mesh: Mesh) -> None:
    """UserError if `policy` keeps arrays in a kind of host memory that the devices do not have.

    TPUs, GPUs and CPUs have it in jax 0.10 and 0.12 (a CPU's is the same memory: nothing is won).
    """
    if policy != "offload":
        return
    device = mesh.devices.flat[0]
    if HOST not in [memory.kind for memory in device.addressable_memories()]:
        raise UserError(
            f"model.remat=offload needs {HOST} memory, which jax does not offer on "
            f"{device.platform} devices; use model.remat=full"
        )
