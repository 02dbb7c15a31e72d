"""How long a step takes, by a roofline: arithmetic, memory and network against a chip's peaks.

    compute  executed FLOPs / (EFFICIENCY x peak)
    memory   HBM bytes that cannot be avoided / bandwidth
    network  sum over collectives of bytes sent / bandwidth of the links they can use
    step     between max(compute, memory, network), if everything overlaps, and
             max(compute, memory) + network, if no transfer does

None of it was ever compared with a TPU. MFU is model FLOPs (flops.py) / (time x peak).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from srpo_jax.attention.tpu_sizes import sizes_for
from srpo_jax.chips import Chip, Slice
from srpo_jax.flops import Flops, Work, attention_flops, model_flops, vision_attention_flops
from srpo_jax.models.config import ModelConfig
from srpo_jax.plan_candidates import Candidate, Rows
from srpo_jax.sharding import by_path

EFFICIENCY = 0.7  # of peak that matrix products reach: an assumption, unvalidated
HEAD_CHUNK = 512  # targets whose logits exist at once (objective.target_logps)


class Model(NamedTuple):
    """What the estimates need to know of the run, besides the candidate."""

    cfg: Any
    config: ModelConfig
    params: Any  # abstract
    trainable: tuple[str, ...]
    reference: bool
    rows: Rows


class Estimate(NamedTuple):
    """Seconds of a step, and what they are made of. All per device but model_flops."""

    model_flops: Flops  # of the whole batch, unpadded
    executed_flops: float
    hbm_bytes: float
    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        return max(self.compute, self.memory) + self.network


def estimate(
    model: Model, candidate: Candidate, where: Slice, compiled: Mapping[str, Any] | None
) -> Estimate:
    """compiled: what plan_compile said; None: guessed, to order the candidates before compiling."""
    chip, devices = where.chip, where.devices
    if compiled is None:
        executed = product_flops(model, candidate) + _kernel_flops(model, candidate, chip)
        network = _guessed_network(model, candidate, where)
    else:
        executed = compiled["flops"]
        if compiled["kernels"]:
            executed += _kernel_flops(model, candidate, chip)
        network = sum(
            entry["wire_bytes"] / (where.link_gbs(entry["extent"]) * 1e9)
            for entry in compiled["collectives"]
        )
    moved = hbm_bytes(model, candidate)
    peak = chip.peak_tflops * 1e12 / chip.devices
    useful = model_flops(
        model.config, model.params, model.rows.work.times(candidate.rows),
        trainable=model.trainable, reference=model.reference,
    )  # fmt: skip
    return Estimate(
        model_flops=useful,
        executed_flops=executed,
        hbm_bytes=moved,
        compute=executed / (EFFICIENCY * peak),
        memory=moved / (chip.hbm_gbs * 1e9 / chip.devices),
        network=network,
    )


def hbm_bytes(model: Model, candidate: Candidate) -> float:
    """Least HBM traffic of a device and step, in bytes.

    optimizer    32 per trained parameter here: parameter and two moments read and written, gradient
                 written and read, all float32
    weights      each matrix product reads its kernel, as large as `tensor` leaves it, in the
                 compute dtype: forward, backward (dx), and once more where layers are recomputed
    activations  per layer, token and pass, 4 D + (2 H + 2 K) d + 3 F in the compute dtype: inputs
                 and results of the products; passes: forward, 2 backward, recomputation
    head         [D, V] once per chunk of HEAD_CHUNK targets, forward, again, and backward
    """
    config, text = model.config, model.config.text
    width = jnp.dtype(model.cfg.model.dtype).itemsize
    local_rows = candidate.rows // (candidate.data * candidate.fsdp)
    split, again = candidate.tensor, recomputes(candidate)
    sizes = _sizes(model)
    trained = sum(size for path, size in sizes.items() if path in model.trainable)
    optimizer = 32 * trained / (candidate.fsdp * split)
    kernels = sum(size for path, size in sizes.items() if path.startswith(("layers/", "vision/")))
    weights = width * kernels / split * (2 + again) * model.cfg.train.accumulate
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    per_token = 4 * text.hidden_size + (heads + 3 * text.intermediate_size) / split
    per_patch = 4 * config.vision.hidden_size + (
        4 * config.vision.hidden_size + 3 * config.vision.intermediate_size) / split  # fmt: skip
    budgets = model.rows.budgets
    activations = width * local_rows * (3 + again) * (
        text.num_layers * budgets.tokens * per_token
        + config.vision.depth * budgets.patches * per_patch
    )  # fmt: skip
    chunks = local_rows * math.ceil(budgets.targets / HEAD_CHUNK)
    head = 3 * chunks * width * text.hidden_size * text.padded_vocab / split
    return optimizer + weights + activations + head


def recomputes(candidate: Candidate) -> bool:
    """Whether layers are computed again in the backward pass (partly counts as yes)."""
    return candidate.remat != "none"


def _sizes(model: Model) -> dict[str, int]:
    return {path: math.prod(leaf.shape) for path, leaf in by_path(model.params).items()}


def product_flops(model: Model, candidate: Candidate) -> float:
    """FLOPs per device of all matrix products but those of attention: the rows with their padding,
    layers a third more where they are computed again, the head always (its chunks are).
    """
    budgets, config = model.rows.budgets, model.config
    work = Work(budgets.tokens, 0, budgets.targets, budgets.patches, 0).times(candidate.rows)
    flops = model_flops(
        config, model.params, work, trainable=model.trainable, reference=model.reference
    )
    layers = (flops.decoder + flops.vision) * (4 / 3 if recomputes(candidate) else 1)
    return (layers + flops.head * 4 / 3) / math.prod(candidate.mesh)


def _kernel_flops(model: Model, candidate: Candidate, chip: Chip) -> float:
    """What the attention kernels compute, per device: the blocks that hold a visible pair, counted
    on the question's own tree. Their declaration is an upper bound that takes every block, as which
    are visible is data.

    A forward pass is 2 products per pair, the backward kernel 5: 1 + 2.5 forward passes, and one
    more where layers are recomputed.
    """
    rows, budgets = model.rows, model.rows.budgets
    passes = 3.5 + recomputes(candidate)
    pairs = rows.blocked_pairs(sizes_for(chip.kind, budgets.tokens).q)
    decoder = attention_flops(model.config, pairs) * passes
    block = sizes_for(chip.kind, budgets.patches).q
    vision = vision_attention_flops(model.config.vision, rows.work, block=block)
    tower_trained = any(path.startswith("vision/") for path in model.trainable)
    vision *= passes if tower_trained else 1.0
    return (decoder + vision) * candidate.rows / math.prod(candidate.mesh)


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
    passes = 2 + recomputes(candidate)
    return seconds + 2 * passes * 2 * stream * rows * _share(candidate.tensor) / link


def _share(group: int) -> float:
    return (group - 1) / group
