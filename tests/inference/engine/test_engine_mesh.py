"""Sampling on several devices."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.multi_device
def test_a_mesh_samples_the_same_branches(tmp_path):
    """Questions spread over data and fsdp, parameters over fsdp or tensor or nothing: the same
    tokens as on one device, with another batch size too; the training mesh has no say."""
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    command = [sys.executable, "-m", "tests.support.engine_mesh_run", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rematerialization" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    sizes = {"fsdp": "data=2,fsdp=2", "tensor": "data=2,tensor=2", "auto": "data=4"}
    assert result["sizes"] == sizes
    assert result["rows"] == {"fsdp": 4, "tensor": 4, "auto": 4}
    assert result["parts"] == {"fsdp": 2, "tensor": 2, "auto": 1}
    for name in sizes:
        assert result[name] == result["one"], name
    assert len({tuple(tokens) for own in result["one"] for tokens in own}) > 5
