"""NVIDIA devices to compile for on a machine without one: XLA's CUDA plugin, told what the chip is.

`make cuda-compiler` puts the plugin, ptxas and libdevice into a folder of the virtual environment
that is not on Python's path: where jax finds the plugin, it looks for a driver at every start.
jax has no public way to ask for such a topology yet (get_topology_desc knows only TPUs).
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import ROOT, plain_environment

FOLDER = pathlib.Path(sys.prefix) / "cuda"
PLUGIN = FOLDER / "jax_plugins/xla_cuda13/xla_cuda_plugin.so"
TOOLS = FOLDER / "nvidia/cu13"

# What the compiler asks of a chip: (compute capability, multiprocessors, shared memory of one in
# bytes, bytes/s of its memory). NVIDIA's data sheets and the CUDA programming guide.
CHIPS = {
    "NVIDIA A100-SXM4-80GB": ((8, 0), 108, 164 << 10, 2.04e12),
    "NVIDIA H100 80GB HBM3": ((9, 0), 132, 228 << 10, 3.35e12),
    "NVIDIA H200": ((9, 0), 132, 228 << 10, 4.8e12),
    "NVIDIA L40S": ((8, 9), 142, 100 << 10, 8.64e11),
}
MEMORY = {"NVIDIA H200": 141 * 10**9, "NVIDIA L40S": 48 * 10**9}  # bytes; else 80 GiB


MARKS = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(
        not PLUGIN.exists(), reason="no compiler for NVIDIA GPUs: `make cuda-compiler`"
    ),
]


def said(script: str, case: str) -> dict:
    """What the script, run for this case in a process that finds the compiler, prints as JSON."""
    env = {
        **plain_environment(),
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={TOOLS}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, script, case], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def devices(name: str, count: int = 1):
    """`count` compile-only devices of one host. Call it once, in a process that `said` starts."""
    from jaxlib import xla_client

    plugin = xla_client.load_pjrt_plugin_dynamically("cuda", str(PLUGIN))
    xla_client.initialize_pjrt_plugin("cuda")
    topology = xla_client.make_c_api_device_topology(
        plugin, "", target_config=_description(name), topology=f"1x1x{count}"
    )
    return topology._make_compile_only_devices()


def _description(name: str) -> str:
    """XLA's GpuTargetConfigProto, in text."""
    (major, minor), cores, shared, bandwidth = CHIPS[name]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  name: "{name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
  core_count: {cores} clock_rate_ghz: 1.7 fpus_per_core: {64 if major == 8 else 128}
  memory_bandwidth: {int(bandwidth)} l2_cache_size: {50 << 20}
  device_memory_size: {MEMORY.get(name, 80 << 30)}
  shared_memory_per_block: {48 << 10} shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{name}"
"""
