"""tests/support/torture.py: whatever hits a run, it ends with the parameters of a quiet one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import SUPPORT

SCRIPT = SUPPORT / "torture.py"


@pytest.mark.slow
@pytest.mark.multi_device
@pytest.mark.parametrize(
    "count, options",
    [
        (2, ["--kinds=kill one,flipped bit", "--no_disk"]),
        (20, ["--interruptions=20"]),
        (20, ["--interruptions=20", "--bucket"]),
    ],
)
def test_an_interrupted_run_ends_like_a_quiet_one(count, options):
    """SIGTERM, SIGKILL and a damaged checkpoint: bitwise the same parameters, nothing hangs, every
    damage is named, and the ledger accounts for the time.
    """
    done = subprocess.run(
        [sys.executable, SCRIPT, *options],
        capture_output=True,
        text=True,
        env=dict(os.environ, JAX_PLATFORMS="cpu"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["bitwise_equal"] and len(said["exit_codes"]) == count + 1
    assert said["damaged_and_named"]
