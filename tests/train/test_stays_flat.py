"""A long run needs no more of the machine at its end than in its beginning."""

from __future__ import annotations

import gc
import os
import pathlib
import statistics
import sys
import threading

import pytest

from srpo_jax.configs import common
from srpo_jax.runs.metrics import Metrics
from srpo_jax.train.loop import train
from tests.support import judged
from tests.support.tiny import tiny_qwen2_5_vl
from tests.train.test_loop import tree_record

STEPS, EARLY, LATE = 1400, range(300, 500), range(1200, 1400)


def used() -> dict[str, float]:
    """What this process holds now, its data workers counted in."""
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    status = pathlib.Path("/proc/self/status").read_text()
    return {
        "MiB": int(status.partition("VmRSS:")[2].split()[0]) / 1024,
        "threads": int(status.partition("Threads:")[2].split()[0]),
        "python threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),
        "children": len(children),
        "objects": len(gc.get_objects()),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_memory_threads_and_files_stay_flat(tmp_path, monkeypatch, capsys):
    """Over 1,400 steps with a checkpoint every 100, of which two are kept: between the middle of
    the first part and that of the last, memory grows by less than 2 %, and nothing else at all.
    """
    tiny_qwen2_5_vl(tmp_path / "model")
    judged.write_judged(tmp_path / "trees", [tree_record(i) for i in range(9)])
    config = common.get_config()
    config.model.path, config.data.trees = str(tmp_path / "model"), str(tmp_path / "trees")
    config.pack.rows, config.objective.pairing, config.mesh.fsdp = 2, "one", 1
    config.train.steps, config.train.save_every, config.train.keep = STEPS, 100, 2
    config.train.log_every = 1
    real, seen = Metrics.write, {}

    def write(self, step, values):
        real(self, step, values)
        if step in EARLY or step in LATE:
            if step % 20 == 10:
                gc.collect()
                seen[step] = used()

    monkeypatch.setattr(Metrics, "write", write)
    assert train(config, tmp_path / "run")["step"] == STEPS
    assert len(seen) == 20
    for name in seen[310]:
        early = statistics.median(seen[step][name] for step in seen if step in EARLY)
        late = statistics.median(seen[step][name] for step in seen if step in LATE)
        room = {"MiB": 0.02 * early, "objects": 0.01 * early}.get(name, 0)
        assert late <= early + room, (name, early, late)
