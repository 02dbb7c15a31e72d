"""Sampling on several devices."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.multi_device
def test_a_mesh_samples_the_same_branches(tmp_path):
    """Questions spread over data and fsdp, parameters over fsdp: the same tokens as on one device,
    with another batch size too."""
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    command = [sys.executable, "-m", "tests.support.engine_mesh_run", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rematerialization" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["sharded"] and result["rows"] == 4
    assert result["mesh"] == result["one"]
    assert len({tuple(tokens) for own in result["one"] for tokens in own}) > 5
