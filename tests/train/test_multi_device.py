"""One run, many meshes: the mesh decides where things are, never what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT, SUPPORT

SCRIPT = SUPPORT / "multi_device_run.py"


@pytest.fixture(scope="module", params=["few", pytest.param("everything", marks=pytest.mark.slow)])
def said(request):
    """(results, stderr) of multi_device_run.py on eight virtual CPU devices."""
    env = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="8",
        PJRT_NPROC="32",  # threads: on few cores the devices could wait for each other's
        PYTHONPATH=str(ROOT),  # also when the package is not installed
        TF_CPP_MIN_LOG_LEVEL="0",  # the partitioner's warnings are what we look for
        XLA_FLAGS="--xla_backend_optimization_level=0",  # half the time to compile
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, f"--{request.param}"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.multi_device
def test_losses_do_not_depend_on_the_mesh(said):
    """Ten steps on 1 device, 4x2, 2x2x2 and (slow) 8x1: the same losses to 1e-6 relative."""
    losses = said[0]["losses"]
    assert len(losses["1"]) == 10 and len(set(losses["1"])) == 10
    assert {"4x2", "2x2x2"} <= losses.keys()
    for name in losses.keys() & {"8x1", "4x2", "2x2x2", "2x2x2 accumulate 2"}:
        mine = losses[name]
        np.testing.assert_allclose(mine, losses["1"][: len(mine)], rtol=1e-6, err_msg=name)


@pytest.mark.multi_device
def test_adapters_do_not_depend_on_the_mesh(said):
    """Three steps with dropout: the same masks, so the same losses, on 1 device, 4x2 and 2x2x2."""
    losses = said[0]["losses"]
    assert len(set(losses["1 lora"])) == 3
    assert "2x2x2 lora" in losses
    for name in losses.keys() & {"4x2 lora", "2x2x2 lora"}:
        np.testing.assert_allclose(losses[name], losses["1 lora"], rtol=1e-6, err_msg=name)


@pytest.mark.multi_device
@pytest.mark.parametrize("said", ["everything"], indirect=True)
@pytest.mark.slow
def test_bfloat16_parameters_and_adafactor_do_not_depend_on_the_mesh(said):
    """Three steps in float32 on parameters in bfloat16, gradients in bfloat16: 1 device, 2x2x2."""
    losses = said[0]["losses"]
    assert len(set(losses["1 bfloat16"])) == 3
    np.testing.assert_allclose(losses["2x2x2 bfloat16"], losses["1 bfloat16"], rtol=2e-3)


@pytest.mark.multi_device
def test_the_compiler_never_gathers_a_whole_array_to_reshard_it(said):
    """No "Involuntary full rematerialization" on any mesh, tied or not, with remat and DPO."""
    assert "nvoluntary" not in said[1], said[1][-3000:]


@pytest.mark.multi_device
def test_a_checkpoint_fits_any_mesh(said):
    """Saved on 4x2, restored on 2x2x2 or (slow) 8x1: the same checksums, the same next losses."""
    np.testing.assert_allclose(*said[0]["after_restore"], rtol=1e-6)


@pytest.mark.multi_device
@pytest.mark.parametrize("said", ["everything"], indirect=True)
@pytest.mark.slow
def test_gradient_norms_do_not_depend_on_the_mesh(said):
    """What `srpo pilot` compares, with adapters and in two slices, on 1 device and on 2x2x2."""
    norms = said[0]["norms"]
    assert min(norms["1"]) > 0
    np.testing.assert_allclose(norms["2x2x2"], norms["1"], rtol=1e-5)
