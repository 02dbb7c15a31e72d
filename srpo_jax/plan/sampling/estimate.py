"""How fast a slice explores, by a roofline: what a step of decoding reads, computes and sends.

    memory   bytes that a step reads at least / bandwidth of the chip's memory
    compute  compiled FLOPs / (EFFICIENCY x peak)
    network  sum over collectives of bytes sent / bandwidth of the links they can use
    step     max(memory, compute) + network: no transfer overlaps

A prefill likewise. None of it was ever compared with a TPU, and what a step costs beside its bytes
(starting some two thousand kernels, the latency of its collectives) is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from srpo_jax.config.fields import Config
from srpo_jax.distributed.accelerators import Slice
from srpo_jax.distributed.mesh import abstract_mesh
from srpo_jax.distributed.sharding import bytes_per_device, param_shardings
from srpo_jax.inference.engine.slots import Shape
from srpo_jax.inference.sampling_mesh import cache_bytes
from srpo_jax.models.attention.xla import own_length
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.plan.estimate import EFFICIENCY
from srpo_jax.plan.sampling.workload import Workload, waiting

# Times that float32 logits are read or written: made, masked, their exponentials, normalised.
LOGITS = 4


class Candidate(NamedTuple):
    """data, fsdp, tensor: the mesh. rows: questions at once on all of it."""

    data: int
    fsdp: int
    tensor: int
    rows: int

    @property
    def mesh(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    @property
    def parts(self) -> int:
        """Into how many parts the rows are split."""
        return self.data * self.fsdp

    @property
    def name(self) -> str:
        return f"data={self.data} fsdp={self.fsdp} tensor={self.tensor} batch={self.rows}"


class Bytes(NamedTuple):
    """What a device reads of its memory for one token of every slot."""

    weights: float
    shared: float  # keys and values of prompts and paths
    own: float  # of the branches' own tokens
    logits: float


class Times(NamedTuple):
    """Seconds of one run of a program."""

    memory: float
    compute: float
    network: float

    @property
    def serial(self) -> float:
        return max(self.memory, self.compute) + self.network


class Estimate(NamedTuple):
    """step, prefill: of one token of every slot, and of one question in every part. parts: shares
    of the time of a question, which sum to 1, by what it goes to. slots_in_use: 0 to 1."""

    step: Times
    prefill: Times
    bytes: Bytes
    parts: dict[str, float]
    slots_in_use: float
    questions_per_second: float
    tokens_per_second: float


def step_bytes(
    cfg: Config, config: ModelConfig, params: Any, candidate: Candidate, shape: Shape
) -> Bytes:
    """The caches are read as if they were full: own ones are read up to the longest branch, of
    which some slot nearly always has one that is near its end. shape: with the candidate's rows."""
    text, tensor = config.text, candidate.tensor
    mesh = abstract_mesh(candidate.mesh)
    itemsize = jnp.dtype(cfg.model.dtype).itemsize
    leaves, shards = by_path(params), by_path(param_shardings(params, mesh))
    read = [
        path
        for path in leaves
        if not path.startswith("vision/")
        and (path != "embed/embedding" or text.tie_word_embeddings)
    ]
    weights = bytes_per_device(
        {path: leaves[path] for path in read}, {path: shards[path] for path in read}
    )
    rows = candidate.rows // candidate.parts
    token = cache_bytes(text, tensor=tensor, itemsize=itemsize)
    return Bytes(
        weights=weights * candidate.fsdp,  # what lies elsewhere is gathered, and read too
        shared=rows * shape.tokens * token,
        own=rows * shape.slots * own_length(shape.new_tokens) * token,
        logits=LOGITS * 4 * rows * shape.slots * text.padded_vocab / tensor,
    )


def estimate(
    read: Bytes,
    candidate: Candidate,
    where: Slice,
    shape: Shape,
    work: Workload,
    programs: Mapping[str, Any],
) -> Estimate:
    """Of a compiled candidate. where: the slice that it is for, one host's where hosts work alone;
    programs: what sampling/compile_job.py counted."""
    bandwidth = where.chip.hbm_gbs * 1e9 / where.chip.devices
    decode, prefill = (
        Times(moved / bandwidth, _compute(programs[name], where), _network(programs[name], where))
        for name, moved in (("decode", sum(read)), ("prefill", read.weights))
    )
    lost = waiting(candidate.rows, candidate.parts, work.steps)
    rows = candidate.rows // candidate.parts
    steps = work.steps + lost.steps
    decoding = steps * decode.serial / rows
    filling = lost.prefills * prefill.serial
    used = work.tokens / (steps * shape.slots)
    seconds = decoding + filling
    rate = candidate.parts / seconds
    return Estimate(
        step=decode,
        prefill=prefill,
        bytes=read,
        parts=_parts(read, decode, used * decoding / seconds)
        | {"idle slots": (1 - used) * decoding / seconds, "prefill": filling / seconds},
        slots_in_use=used,
        questions_per_second=rate,
        tokens_per_second=rate * work.tokens,
    )


def _parts(read: Bytes, step: Times, share: float) -> dict[str, float]:
    """What the steps that were of use went to, in parts of `share`."""
    network = share * step.network / step.serial
    rest = share - network
    if step.compute > step.memory:
        return {"arithmetic": rest, "network": network}
    total = sum(read)
    names = {"reading weights": read.weights, "reading shared keys and values": read.shared}
    names |= {"reading own keys and values": read.own, "logits": read.logits}
    return {name: rest * size / total for name, size in names.items()} | {"network": network}


def _compute(program: Mapping[str, Any], where: Slice) -> float:
    """What kernels declare is an upper bound: every block of the mask."""
    peak = where.chip.peak_tflops * 1e12 / where.chip.devices
    return (program["flops"] + program["kernel_flops"]) / (EFFICIENCY * peak)


def _network(program: Mapping[str, Any], where: Slice) -> float:
    return sum(
        each["wire_bytes"] / (where.link_gbs(each["extent"]) * 1e9)
        for each in program["collectives"]
    )
