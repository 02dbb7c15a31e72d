"""LoRA: low-rank adapters beside frozen weights, as a parameter tree of our own.

    y = x W + scale * dropout(x) A B     scale = alpha / r (arXiv 2106.09685), or alpha / sqrt(r)
                                         with rank stabilisation (arXiv 2312.03732)

The tree has the paths of the modules that it adapts: "layers/attn/q" has `lora_a` [L, D, r] and
`lora_b` [L, r, H, d] beside a kernel [L, D, H, d]. The model finds them in the variable collection
"lora" (models/decoder.py, Linear). A merged weight is only made to be written or evaluated.

Dropout masks are drawn with keys f(seed, step, slice of the batch, path, layer) over the whole
array, so they depend on neither the mesh nor rematerialisation. They do depend on how a batch is
cut into slices: with dropout, train.accumulate is part of what identifies a run.
"""

from __future__ import annotations

import math
import re
import string
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srpo_jax.config.fields import arguments
from srpo_jax.config.sections import LoraSettings
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.policy_model import abstract_adapters, abstract_params
from srpo_jax.train.optimizer import merge

KERNEL = "/kernel"
# The output head is never called as a module: the loss and the sampler multiply with its kernel.
NOT_ADAPTED = ("lm_head",)


class Site(NamedTuple):
    """The axes of a pair of adapters, as sizes: A [*shared, *inner, r], B [*shared, r, *outer] for
    a kernel [*shared, *inner, *outer]. stack: the first axes of `shared`, over scanned layers.
    """

    stack: tuple[int, ...]
    shared: tuple[int, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]


class Lora(NamedTuple):
    """The adapters of a run: the numbers of its config, and where in its model they sit."""

    rank: int
    alpha: float
    use_rslora: bool
    dropout: float  # chance that an entry of x is dropped before A, in training
    seed: int
    sites: dict[str, Site]  # by the path of the module

    @property
    def scale(self) -> float:
        """What A B is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def peft_settings(self) -> dict[str, Any]:
        """The same numbers under the names of peft.LoraConfig."""
        return {
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha.is_integer() else self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
        }


def make_lora(section: LoraSettings, seed: int, config: ModelConfig) -> Lora | None:
    """From the config's `lora` section and seed; None if the rank is 0.

    Errors: UserError for a target that matches no parameter, or one that takes no adapter.
    """
    if not section.rank:
        return None
    fitting = {path: leaf.shape for path, leaf in by_path(abstract_adapters(config)).items()}
    sites = {}
    for path in _modules(section.targets, config, fitting):
        a, b = (fitting[f"{path}/{name}"] for name in ("lora_a", "lora_b"))
        cut = b.index(0)  # the model declares adapters of rank 0
        sites[path] = Site(fitting[f"{path}/keep"], b[:cut], a[cut:-1], b[cut + 1 :])
    return Lora(**arguments(Lora, section), seed=seed, sites=sites)


def _modules(patterns: tuple[str, ...], config: ModelConfig, fitting: Any) -> list[str]:
    """Paths of the modules whose kernels the patterns match in full, in the model's order."""
    paths = tuple(by_path(abstract_params(config)))
    fits = {path.removesuffix("/lora_a") for path in fitting if path.endswith("/lora_a")}
    fits = {path + KERNEL for path in fits.difference(NOT_ADAPTED)}
    hits: set[str] = set()
    for pattern in patterns:
        found = [path for path in paths if re.fullmatch(pattern, path)]
        unfit = [path for path in found if path not in fits]
        if not found:
            raise UserError(
                f"lora.targets {pattern!r} matches no parameter; paths look like {min(fits)}, "
                "and the whole path must match"
            )
        if unfit:
            raise UserError(
                f"lora.targets {pattern!r} matches {unfit[0]}, which takes no adapter: only the "
                "kernels of layers and projectors do, as in 'layers/.*/kernel'"
            )
        hits.update(found)
    return [path.removesuffix(KERNEL) for path in paths if path in hits]


def adapter_shardings(lora: Lora, kernels: Any) -> dict:
    """Places for the tree of adapters: each axis lies like the kernel's, the rank is whole.

    kernels: tree of NamedSharding of the parameters.
    """
    kernels, leaves = by_path(kernels), {}
    for path, site in lora.sites.items():
        sharding = kernels[path + KERNEL]
        shared, inner = len(site.shared), len(site.inner)
        axes = (*sharding.spec, *[None] * (shared + inner + len(site.outer) - len(sharding.spec)))
        a = (*axes[: shared + inner], None)
        b = (*axes[:shared], None, *axes[shared + inner :])
        leaves[f"{path}/lora_a"] = NamedSharding(sharding.mesh, P(*a))
        leaves[f"{path}/lora_b"] = NamedSharding(sharding.mesh, P(*b))
    return _nested(leaves)


def init_adapters(lora: Lora) -> dict:
    """A uniform within 1 / sqrt(fan-in), which is PEFT's kaiming_uniform(a=sqrt 5), and B zero: at
    the start the adapted policy is the policy. A function of the seed, the paths and the rank.
    """
    key = _stream(lora.seed, "adapters")
    leaves = {}
    for path, site in lora.sites.items():
        bound = math.prod(site.inner) ** -0.5
        shape = (*site.shared, *site.inner, lora.rank)
        drawn = jax.random.uniform(_stream(key, path), shape, jnp.float32, -bound, bound)
        leaves[f"{path}/lora_a"] = drawn
        leaves[f"{path}/lora_b"] = jnp.zeros((*site.shared, lora.rank, *site.outer), jnp.float32)
    return _nested(leaves)


def dropout_key(lora: Lora, step: jax.Array, part: Any = 0) -> jax.Array | None:
    """The key of all masks of one step's slice `part`; None without dropout."""
    if not lora.dropout:
        return None
    key = jax.random.fold_in(_stream(lora.seed, "dropout"), step)
    return jax.random.fold_in(key, part)


def variables(lora: Lora, adapters: Any, key: jax.Array | None = None) -> dict:
    """The collection "lora" that the model reads: the adapters, the scale multiplied into B, and
    with a key what each module needs to draw its mask.
    """
    leaves, keep = by_path(adapters), 1.0 if key is None else 1.0 - lora.dropout
    for path, site in lora.sites.items():
        # 1 / keep is here too: in bfloat16, dividing x by it would be off by up to 0.4 percent.
        leaves[f"{path}/lora_b"] = leaves[f"{path}/lora_b"] * (lora.scale / keep)
        if key is not None:
            leaves[f"{path}/dropout"] = jax.random.split(_stream(key, path), site.stack)
            leaves[f"{path}/keep"] = jnp.full(site.stack, keep, jnp.float32)
    return _nested(leaves)


def merged_params(lora: Lora, params: Any, adapters: Any, *, keep: bool = False) -> Any:
    """`params` with scale * A B added to the kernels, in float32 and then in the kernel's dtype.

    Kernel by kernel, each into the place of the old one: those of `params` are used up, unless
    they are to be kept.
    """
    kernels, leaves, merged = by_path(params), by_path(adapters), {}
    for path, site in lora.sites.items():
        old = kernels[path + KERNEL]
        donated = () if keep else (0,)
        options: dict[str, Any] = {"donate_argnums": donated, "out_shardings": old.sharding}
        add = jax.jit(_add, static_argnums=(3, 4), **options)
        ab = leaves[f"{path}/lora_a"], leaves[f"{path}/lora_b"]
        merged[path + KERNEL] = add(old, *ab, _product(site), lora.scale)
    return merge(params, merged)


def merging(lora: Lora, adapters: Mapping[str, np.ndarray]) -> Callable[..., np.ndarray]:
    """The same for hf/export.py: a function (path, layer, values) -> values, on the host.

    adapters: {path: array}. Kernels come out in float32, all other parameters as they are.
    """

    def merge_one(path: str, layer: int | None, value: np.ndarray) -> np.ndarray:
        module = path.removesuffix(KERNEL)
        if module not in lora.sites or module == path:
            return value
        a, b = (adapters[f"{module}/{name}"] for name in ("lora_a", "lora_b"))
        if layer is not None:
            a, b = a[layer], b[layer]
        change = a.reshape(-1, lora.rank) @ b.reshape(lora.rank, -1)
        return value.astype(np.float32) + np.float32(lora.scale) * change.reshape(value.shape)

    return merge_one


def _add(kernel: jax.Array, a: jax.Array, b: jax.Array, product: str, scale: float) -> jax.Array:
    change = scale * jnp.einsum(product, a, b, precision="highest")
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)


def _product(site: Site) -> str:
    """The einsum of A and B to the shape of the kernel."""
    letters = iter(string.ascii_lowercase)
    shared, inner, outer = (
        "".join(next(letters) for _ in axes) for axes in (site.shared, site.inner, site.outer)
    )
    return f"{shared}{inner}R,{shared}R{outer}->{shared}{inner}{outer}"


def _stream(key: Any, name: str) -> jax.Array:
    """A key of its own for `name`, from a key or a seed. The generator is named: its masks must not
    change with a global setting.
    """
    if isinstance(key, int):
        key = jax.random.key(key, impl="threefry2x32")
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _nested(leaves: dict[str, Any]) -> dict:
    """{"a/b": leaf} as {"a": {"b": leaf}}."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
