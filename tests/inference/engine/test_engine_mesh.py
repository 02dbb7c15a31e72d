"""Sampling on several devices."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.multi_device
def test_a_mesh_samples_the_same_branches(tmp_path):
    """Questions spread over data and fsdp, parameters over fsdp or tensor or nothing: the same
    tokens and ends as on one device, and log-probabilities to 1e-5 a token, with penalties, filters
    and stop strings too; rows that do not all have a question, slots that are taken again, and
    other numbers of rows; the training mesh has no say."""
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    command = [sys.executable, "-m", "tests.support.engine_mesh_run", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rematerialization" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    sizes = {"auto": "data=8", "tensor": "data=2,tensor=4", "fsdp": "data=4,fsdp=2"}
    assert result["sizes"] == sizes
    assert result["rows"] == {"auto": 8, "tensor": 4, "fsdp": 8}
    assert result["parts"] == {"auto": 1, "tensor": 4, "fsdp": 2}
    one = result["one"]
    for questions in one.values():
        lengths = {len(tokens) for own in questions for tokens, *_ in own}
        assert len(lengths) > 4 and {ended for own in questions for _, ended, _ in own} == {0, 1}
    assert one["plain"] != one["all there is"]
    assert result["meshes"].keys() == sizes.keys()
    for mesh, ways in result["meshes"].items():
        for way, found in ways.items():
            for ours, theirs in zip(sum(found, []), sum(one[way], []), strict=True):
                assert ours[:2] == theirs[:2], (mesh, way)
                assert ours[2] == pytest.approx(theirs[2], abs=1e-5 * len(theirs[0])), (mesh, way)
