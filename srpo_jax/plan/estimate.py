"""How long a step takes, by a roofline: arithmetic, memory and network against a chip's peaks.

    compute  executed FLOPs / (EFFICIENCY x peak)
    memory   HBM bytes that cannot be avoided / bandwidth
    network  sum over collectives of bytes sent / bandwidth of the links they can use
    host     what remat=offload sends to the host's memory and fetches again / PCIE
    step     between the largest of them, if everything overlaps, and
             max(compute, memory) + network + host, if no transfer does

None of it was ever compared with a TPU. MFU is model FLOPs (flops.py) / (time x peak).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from srpo_jax.config.fields import Config
from srpo_jax.distributed.accelerators import Chip, Slice
from srpo_jax.models.attention.dispatch import choose
from srpo_jax.models.attention.tpu_sizes import row_sizes_for, sizes_for
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.flops import Flops, Work, attention_flops, model_flops, tower_trained
from srpo_jax.plan.candidates import Candidate, Rows, kept_elements
from srpo_jax.train.train_state import TrainState

EFFICIENCY = 0.7  # of peak that matrix products reach: an assumption, unvalidated
HEAD_CHUNK = 512  # targets whose logits exist at once (target_logps)
PCIE = 15e9  # bytes/s between a chip and its host: the scaling book's for v6e, taken for all


class Again(NamedTuple):
    """What a rematerialisation policy computes again in the backward pass."""

    products: bool  # of a layer's weights, but for the last one, whose result nothing reads
    attention: bool


AGAIN = {"none": Again(False, False), "dots": Again(False, True), "attention": Again(True, False)}
ALL_AGAIN = Again(True, True)  # of every other policy
LAST = ("mlp/down/kernel", "mlp/fc2/kernel")  # of a layer


class Model(NamedTuple):
    """What the estimates need to know of the run, besides the candidate."""

    cfg: Config
    config: ModelConfig
    state: TrainState  # abstract
    trainable: tuple[str, ...]
    reference: bool
    rows: Rows

    @property
    def params(self) -> Any:
        return self.state.params


class Estimate(NamedTuple):
    """Seconds of a step, and what they are made of. All per device but model_flops."""

    model_flops: Flops  # of the whole batch, unpadded
    executed_flops: float
    hbm_bytes: float
    compute: float
    memory: float
    network: float
    host: float

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.memory, self.network, self.host)

    @property
    def serial(self) -> float:
        return max(self.compute, self.memory) + self.network + self.host


def estimate(
    model: Model, candidate: Candidate, where: Slice, compiled: Mapping[str, Any] | None
) -> Estimate:
    """The estimate of a candidate. compiled: what compile_job.py counted; None: it is guessed,
    which orders the candidates before they are compiled.
    """
    chip = where.chip
    if compiled is None:
        products = product_flops(model, candidate)
        network = _guessed_network(model, candidate, where)
    else:
        products = compiled["flops"]
        network = sum(
            entry["wire_bytes"] / (where.link_gbs(entry["extent"]) * 1e9)
            for entry in compiled["collectives"]
        )
    executed = products + kernel_flops(model, candidate, chip)
    moved = hbm_bytes(model, candidate)
    peak = chip.peak_tflops * 1e12 / chip.devices
    useful = model_flops(
        model.config,
        model.params,
        model.rows.work.times(candidate.rows),
        trainable=model.trainable,
        reference=model.reference,
    )
    return Estimate(
        model_flops=useful,
        executed_flops=executed,
        hbm_bytes=moved,
        compute=executed / (EFFICIENCY * peak),
        memory=moved / (chip.hbm_gbs * 1e9 / chip.devices),
        network=network,
        host=_host_bytes(model, candidate) / (PCIE / chip.devices),
    )


def hbm_bytes(model: Model, candidate: Candidate) -> float:
    """Least HBM traffic of a device and step, in bytes.

    optimizer    trained parameters and optimizer state read and written, gradients written and
                 read: 32 per parameter with AdamW and float32
    weights      each matrix product reads its kernel, as large as `tensor` leaves it, in the
                 compute dtype: forward, backward (dx), and once more where layers are recomputed
    activations  per layer, token and pass, 4 D + (2 H + 2 K) d + 3 F in the compute dtype: inputs
                 and results of the products; passes: forward, 2 backward, recomputation
    head         [D, V] once per chunk of HEAD_CHUNK targets, forward, again, and backward
    """
    config, text = model.config, model.config.text
    width = jnp.dtype(model.cfg.model.dtype).itemsize
    local_rows = candidate.rows // (candidate.data * candidate.fsdp)
    split, again = candidate.tensor, _again(candidate).products
    sizes = _sizes(model)
    leaves = by_path(model.params)
    trained = sum(_nbytes(leaves[path]) for path in model.trainable)  # gradients have as much
    moments = sum(map(_nbytes, jax.tree.leaves(model.state._replace(params=None, base=None))))
    optimizer = 2 * (moments + 2 * trained) / (candidate.fsdp * split)
    kernels = sum(size for path, size in sizes.items() if path.startswith(("layers/", "vision/")))
    weights = width * kernels / split * (2 + again) * model.cfg.train.accumulate
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    per_token = 4 * text.hidden_size + (heads + 3 * text.intermediate_size) / split
    per_patch = (
        4 * config.vision.hidden_size
        + (4 * config.vision.hidden_size + 3 * config.vision.intermediate_size) / split
    )
    budgets = model.rows.budgets
    activations = (
        width
        * local_rows
        * (3 + again)
        * (
            text.num_layers * budgets.tokens * per_token
            + config.vision.depth * budgets.patches * per_patch
        )
    )
    chunks = local_rows * math.ceil(budgets.targets / HEAD_CHUNK)
    head = 3 * chunks * width * text.hidden_size * text.padded_vocab / split
    return optimizer + weights + activations + head


def _again(candidate: Candidate) -> Again:
    return AGAIN.get(candidate.remat, ALL_AGAIN)


def _host_bytes(model: Model, candidate: Candidate) -> float:
    """Bytes that a device sends to the host and fetches again: the inputs of the layers."""
    if candidate.remat != "offload":
        return 0.0
    kept = kept_elements(
        model.config,
        candidate._replace(remat="full"),
        model.rows.budgets,
        tower=tower_trained(model.trainable),
    )
    width = jnp.dtype(model.cfg.model.dtype).itemsize
    return 2 * width * kept * candidate.rows / (candidate.data * candidate.fsdp)


def _nbytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _sizes(model: Model) -> dict[str, int]:
    return {path: math.prod(leaf.shape) for path, leaf in by_path(model.params).items()}


def product_flops(model: Model, candidate: Candidate) -> float:
    """FLOPs per device of all matrix products but those of attention: what the compiled program is
    expected to hold. Rows with their padding, targets in whole chunks, the head once more (its
    chunks are always computed again), layers as their policy says.
    """
    budgets, config = model.rows.budgets, model.config
    targets = math.ceil(budgets.targets / HEAD_CHUNK) * HEAD_CHUNK
    work = Work(budgets.tokens, 0, targets, budgets.patches, 0)
    total = model_flops(
        config, model.params, work, trainable=model.trainable, reference=model.reference
    ).total
    total += 2 * config.text.hidden_size * config.text.vocab_size * targets
    if _again(candidate).products:
        for path, size in _sizes(model).items():
            if path.endswith("/kernel") and not path.endswith(LAST):
                if path.startswith("layers/"):
                    total += 2 * size * budgets.tokens
                elif path.startswith("vision/blocks/") and tower_trained(model.trainable):
                    total += 2 * size * budgets.patches
    return total * candidate.rows / math.prod(candidate.mesh)


def kernel_flops(model: Model, candidate: Candidate, chip: Chip) -> float:
    """What the attention kernels compute, per device: the blocks that hold a visible pair, counted
    on the question's own tree. Their declaration is an upper bound that takes every block, as which
    are visible is data. Attention without a kernel is among the compiled program's products.

    A forward pass is 2 products per pair, the backward kernel 5: 1 + 2.5 forward passes, and one
    more where attention is computed again.
    """
    rows, config, asked = model.rows, model.config, model.cfg.model.attention
    tokens = rows.budgets.tokens
    passes = 3.5 + _again(candidate).attention
    total = 0.0
    if choose(asked, "tpu", tokens) != "xla":
        pairs = rows.blocked_pairs(sizes_for(chip.kind, tokens).q)
        total += attention_flops(config, pairs) * passes
    total += _tower_kernel_flops(model, chip) * (passes if tower_trained(model.trainable) else 1.0)
    return total * candidate.rows / math.prod(candidate.mesh)


def _tower_kernel_flops(model: Model, chip: Chip) -> float:
    """FLOPs of the vision tower's attention in a forward pass over a row; 0 without a kernel."""
    vision, asked, work = model.config.vision, model.cfg.model.attention, model.rows.work
    if vision.tile_length:  # each tile is a row of its own
        length = vision.tile_length
        block = row_sizes_for(chip.kind, length).q
    else:
        length = model.rows.budgets.patches
        block = sizes_for(chip.kind, length).q
    if choose(asked, "tpu", length) == "xla":
        return 0.0
    return vision.kernel_flops(work.patches, work.patch_pairs, block)


def _guessed_network(model: Model, candidate: Candidate, where: Slice) -> float:
    """Seconds. fsdp: parameters gathered twice and gradients scattered once, in the compute dtype,
    over one link per side of the slice. data: gradients all-reduced. tensor: 2 all-reduces of the
    residual stream per layer and pass, over one link.
    """
    text, link = model.config.text, where.chip.ici_gbs * 1e9 / where.chip.devices
    width = jnp.dtype(model.cfg.model.dtype).itemsize
    parameters = width * sum(_sizes(model).values()) / candidate.tensor
    sides = sum(side > 1 for side in where.sides) or 1
    seconds = 3 * parameters * _share(candidate.fsdp) / (sides * link) * model.cfg.train.accumulate
    seconds += 2 * parameters / candidate.fsdp * _share(candidate.data) / (sides * link)
    stream = width * model.rows.budgets.tokens * text.hidden_size * text.num_layers
    rows = candidate.rows / (candidate.data * candidate.fsdp)
    passes = 2 + _again(candidate).products
    return seconds + 2 * passes * 2 * stream * rows * _share(candidate.tensor) / link


def _share(group: int) -> float:
    return (group - 1) / group
