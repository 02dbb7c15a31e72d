"""How many processes share the devices does not matter: the same batches, the same losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT, torture

EXACT = ("step", "num_tokens", "epoch", "learning_rate")


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """A function of (processes, devices of each): every metric of a run but the speeds."""
    folder = tmp_path_factory.mktemp("counts")
    world = torture.make_world(folder)
    config = folder / "config.py"
    config.write_text(torture.CONFIG.format(world=world, steps=4, save_every=4))
    seen: dict[tuple[int, int], list[dict]] = {}

    def run(processes: int, devices: int) -> list[dict]:
        if (processes, devices) not in seen:
            workdir = folder / f"{processes}x{devices}"
            # tensor=4 goes over two of four processes, which then need the same rows.
            argv = [
                sys.executable,
                "-m",
                "srpo_jax.launch",
                f"--processes={processes}",
                f"--devices={devices}",
                "--submit",
                "--",
                "train",
                f"--config={config}",
                f"--workdir={workdir}",
                "--config.mesh.fsdp=1",
                "--config.mesh.tensor=4",
                "--config.train.compilation_cache=off",
            ]
            env = dict(os.environ, PYTHONPATH=str(ROOT), PJRT_NPROC="32")
            done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
            rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
            seen[processes, devices] = [
                {key: x for key, x in row.items() if not key.startswith("perf/")} for row in rows
            ]
        return seen[processes, devices]

    return run


@pytest.mark.multi_device
@pytest.mark.parametrize("processes, devices", [(2, 4), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_the_number_of_processes(losses, processes, devices):
    """Eight devices in one process, in two, and in four. To 1e-6 relative, not to the last bit:
    within a process XLA:CPU adds up in another order than gloo does between processes.
    """
    alone, shared = losses(1, 8), losses(processes, devices)
    assert len(alone) == 4 and len({row["loss"] for row in alone}) == 4
    for mine, theirs in zip(shared, alone, strict=True):
        assert [mine[key] for key in EXACT] == [theirs[key] for key in EXACT]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
