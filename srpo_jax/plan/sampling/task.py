"""What a plan for exploration is made for: the policy, the questions, and the chips of one mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

from srpo_jax.config.fields import Config
from srpo_jax.distributed.accelerators import Slice
from srpo_jax.inference.engine.slots import Shape
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.plan.sampling.estimate import Candidate, Estimate, estimate, step_bytes
from srpo_jax.plan.sampling.workload import Workload

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Task:
    """What is planned. whole: the slice that was asked for; where: the part of it that is one mesh:
    all of it, or one host where each host explores alone. shape: of the engine, with rows 0."""

    cfg: Config
    config: ModelConfig
    params: Any  # abstract, in the computing dtype
    whole: Slice
    where: Slice
    shape: Shape
    work: Workload

    @property
    def memory(self) -> int:
        """Bytes that a program may use on a device."""
        return int(self.where.chip.hbm_gib * GIB) // self.where.chip.devices

    @property
    def hosts(self) -> int:
        """How many such meshes work beside each other."""
        return self.whole.chips // self.where.chips

    def estimate(self, candidate: Candidate, programs: Any) -> Estimate:
        shape = dataclasses.replace(self.shape, rows=candidate.rows)
        read = step_bytes(self.cfg, self.config, self.params, candidate, shape)
        return estimate(read, candidate, self.where, shape, self.work, programs)
