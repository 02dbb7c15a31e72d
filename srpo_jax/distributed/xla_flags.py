"""Named sets of XLA flags for TPU, all off by default; `--xla_preset=` of launch/ chooses them.

libtpu reads them from LIBTPU_INIT_ARGS and refuses what it does not know, so a flag that a new
libtpu dropped would end a job at its start: tests/launch/test_launch_tpu.py compiles with every
preset. Nothing here was timed on a TPU. The flags are those that MaxText's
benchmarks/xla_flags_library.py (e591f30) groups for training; try one at a time, and keep what is
faster on your slice.
"""

from __future__ import annotations

import dataclasses

from srpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preset:
    """about: what it is for; flags: without the dashes."""

    about: str
    flags: tuple[str, ...]


PRESETS: dict[str, Preset] = {
    "collectives": Preset(
        "overlap the gathers and reductions of fsdp with compute inside a slice (v5p, v6e)",
        (
            "xla_tpu_enable_async_collective_fusion=true",
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
            "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "xla_tpu_overlap_compute_collective_tc=true",
            "xla_enable_async_all_gather=true",
            "xla_enable_async_all_reduce=true",
        ),
    ),
    "slices": Preset(
        "several slices: overlap the reductions of mesh.data over the network with compute",
        (
            "xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "xla_tpu_data_parallel_opt_different_sized_ops=true",
        ),
    ),
    "latency": Preset(
        "schedule twice, with what the first schedule needed in memory; compiles longer",
        ("xla_tpu_enable_latency_hiding_scheduler=true", "xla_latency_hiding_scheduler_rerun=2"),
    ),
    "vmem": Preset(
        "more on-chip memory for the operation that runs, less for prefetching the next ones",
        ("xla_tpu_scoped_vmem_limit_kib=98304",),
    ),
    "sdc": Preset(
        "compute everything six times and halt where the results differ: finds a broken chip",
        (
            "xla_tpu_enable_sdc_checker=true",
            "xla_tpu_sdc_check_halt_on_detection=true",
            "xla_tpu_sdc_replicate_llo=true",
            "xla_tpu_sdc_check_repeat_count=5",
        ),
    ),
}


def libtpu_init_args(names: str) -> str:
    """ "collectives,slices" -> the value of LIBTPU_INIT_ARGS. Errors: UserError naming the sets."""
    flags: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in PRESETS:
            raise UserError(f"--xla_preset={name}: there is {', '.join(PRESETS)}")
        flags += [f"--{flag}" for flag in PRESETS[name].flags]
    return " ".join(dict.fromkeys(flags))
