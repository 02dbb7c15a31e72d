"""Which process of how many this one is: from the environment and the config, without side effects.

laptop              one process; nothing is set up
explicit            SRPO_COORDINATOR, SRPO_PROCESS_ID, SRPO_NUM_PROCESSES, or config.processes
Slurm               srun's variables; jax finds the coordinator
TPU (GKE, GCE)      jax asks the environment and the metadata server
Pathways            JAX_PLATFORMS=proxy: one program drives all devices; nothing is set up
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo_jax.config.sections import ProcessesSettings
from srpo_jax.errors import UserError

COORDINATOR, INDEX, COUNT = "SRPO_COORDINATOR", "SRPO_PROCESS_ID", "SRPO_NUM_PROCESSES"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class ProcessInfo:
    """`kind`: single, explicit, slurm or tpu. `count` and `index` are jax's to say for tpu (0)."""

    kind: str = "single"
    count: int = 1
    index: int = 0
    coordinator: str = ""
    local_device_ids: tuple[int, ...] | None = None  # None: jax decides

    @property
    def loopback(self) -> bool:
        """Whether all processes are on this machine."""
        return self.coordinator.rpartition(":")[0] in LOOPBACK


def detect_process(
    section: ProcessesSettings, env: Mapping[str, str], *, tpu_host: bool = False
) -> ProcessInfo:
    """Finds out which process this is; a pure function of its arguments.

    section: the config's `processes`; each of the three variables goes before its field.
    tpu_host: whether this machine has TPU chips (jax's own answer).
    Errors: UserError for a half-set or impossible description.
    """
    platforms = env.get("JAX_PLATFORMS", "").split(",")
    if "proxy" in platforms:
        return ProcessInfo()  # Pathways: jax.distributed must not be started
    explicit = _explicit(section, env)
    if explicit is not None:
        return explicit
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in env for name in slurm):  # a step of srun, not just a shell of salloc
        if int(env["SLURM_NTASKS"]) > 1:
            return ProcessInfo(
                "slurm",
                int(env["SLURM_NTASKS"]),
                int(env["SLURM_PROCID"]),
                local_device_ids=_slurm_devices(env),
            )
        return ProcessInfo()
    if tpu_host and platforms[0] in ("", "tpu"):
        return ProcessInfo("tpu", 0, 0)
    return ProcessInfo()


def _explicit(section: ProcessesSettings, env: Mapping[str, str]) -> ProcessInfo | None:
    names = {  # what it is called in the environment, in the config
        COORDINATOR: ("coordinator", section.coordinator or None),
        INDEX: ("index", section.index if section.index >= 0 else None),
        COUNT: ("count", section.count or None),
    }
    found = {name: env.get(name) or value for name, (_, value) in names.items()}
    given = [name for name, value in found.items() if value is not None]
    if not given:
        return None
    if given == [COUNT] and str(found[COUNT]) == "1":
        return ProcessInfo()  # on this host alone, whatever cluster it belongs to
    missing = [name for name in names if found[name] is None]
    if missing:
        listed = " and ".join(f"{name} (or config.processes.{names[name][0]})" for name in missing)
        raise UserError(f"{', '.join(given)} is set but not {listed}; set all three or none")
    count, index = (_number(name, found[name]) for name in (COUNT, INDEX))
    if count < 1 or not 0 <= index < count:
        raise UserError(f"{INDEX}={index} and {COUNT}={count}: ids go from 0 to the number less 1")
    address = str(found[COORDINATOR])
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}", address):
        raise UserError(f"{COORDINATOR}={address}: must be HOST:PORT of process 0")
    return ProcessInfo() if count == 1 else ProcessInfo("explicit", count, index, address)


def _number(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}={value}: must be a whole number") from None


def _slurm_devices(env: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs that this task may see, where it is alone on its node or Slurm gave it its own.

    jax alone would take one GPU a task, the one numbered like the task on its node: right only
    for one task per GPU that all see every GPU. None: leave it to that rule.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len(visible.split(",")) if visible else int(env.get("SLURM_GPUS_ON_NODE", "0") or 0)
    alone = env["SLURM_LOCALID"] == "0" and re.match(
        r"1(\D|$)", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    )
    return tuple(range(gpus)) if gpus and (alone or gpus == 1) else None
