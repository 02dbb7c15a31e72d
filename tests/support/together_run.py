"""One of two processes that explore and evaluate on one mesh: `together_run.py WORLD WORKDIR`.

For test_together.py, which starts them with two devices each. The config is configs/pod.py, whose
training mesh has no room here, with the world's records and policy.
"""

from __future__ import annotations

import pathlib
import sys

import jax

from srpo_jax.config.load import load_config
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.explore.workers import exploring_session
from tests.support import ROOT

OVERRIDES = {
    "model.dtype": "float32",  # in bfloat16 a mesh of another shape rounds otherwise
    "arbiter.kind": "ssui_mini",
    "explore.branches": 2,
    "explore.max_new_tokens": 6,
    "explore.temperature": 3.0,
    "explore.shards": 2,
    "eval.max_new_tokens": 6,
}


def config_of(world: pathlib.Path, **more: str):
    """configs/pod.py for the world that small_world.write_world made there."""
    settings = {
        **OVERRIDES,
        "model.path": world / "model",
        "data.train_records": world / "records.jsonl",
        "data.test_records": world / "records.jsonl",
        **more,
    }
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    return load_config(f"{ROOT}/configs/pod.py", overrides)


def main(world: str, workdir: str) -> None:
    mesh = {"explore.mesh": "tensor=2", "explore.together": "yes"}
    config = config_of(pathlib.Path(world), **mesh)
    with exploring_session(config):
        assert jax.process_count() == 2 and jax.device_count() == 4
        explore(config, workdir)
        explore(config, workdir)  # done: nothing is to do, on neither process
        evaluate(config, workdir, "x")


if __name__ == "__main__":
    main(*sys.argv[1:])
