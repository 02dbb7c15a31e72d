"""One of two processes that sample on one mesh: `together_run.py WORLD WORKDIR [RUN]`.

For test_together.py, which starts them with two devices each. The config is configs/pod.py, whose
training mesh has no room here, with the world's records, and its policy or that of a run.
"""

from __future__ import annotations

import pathlib
import sys

import jax

from srpo_jax.config.load import load_config
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.explore.workers import exploring_session
from srpo_jax.export.export import sampling_params
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


def main(world: str, workdir: str, run: str = "") -> None:
    # More than one process has, so they meet, after each has seen that its devices are too few.
    config = config_of(pathlib.Path(world), **{"explore.mesh": "data=2,tensor=2"})
    with exploring_session(config):
        assert jax.process_count() == 2 and jax.device_count() == 4
        params = sampling_params(config, run)[1] if run else None
        if params:
            up = params["layers"]["mlp"]["up"]["kernel"]
            layers, width, ffn = up.shape
            assert up.sharding.shard_shape(up.shape) == (layers, width, ffn // 2)
        explore(config, workdir, params=params)
        explore(config, workdir, params=params)  # done: nothing is to do, on neither process
        evaluate(config, workdir, "x", params=params)


if __name__ == "__main__":
    main(*sys.argv[1:])
