"""All families, trained for a few steps and exported: transformers computes what we compute."""

from __future__ import annotations

import numpy as np
import pytest

from srpo_jax.configs import common
from srpo_jax.export.export import export, newest_params
from srpo_jax.pack.tree import Branch, Tree
from srpo_jax.train.loop import train
from tests.support.families import CASES, QUESTIONS, Loaded

pytest.importorskip("torch")
ANSWERS = ([31, 32, 33, 34], [35], [36, 37, 38])
LORA = ("layers/.*/kernel", "vision/blocks/.*/kernel")


class Trees(list):
    """Trees as training reads them: a list that knows its processor."""

    def __init__(self, loaded: Loaded):
        rng = np.random.default_rng(0)

        def tokens():
            return rng.integers(5, 250, int(rng.integers(2, 7))).astype(np.int32)

        super().__init__(
            Tree(
                f"q{i}",
                prompt,
                (tokens(), tokens(), tokens()),
                tuple(Branch(at, tokens(), safe) for at in range(3) for safe in (True, False)),
            )
            for i, prompt in enumerate(loaded.prompts)
        )
        self.processor = loaded.processor


# One with adapters, one with DeepStack, one of tiles; the others have the same code path (what is
# particular to them is tested forward and backward beside their modules), and run in test-all.
QUICK = (("qwen2_5_vl", "lora"), ("qwen3_vl", "full"))
WAYS = [
    pytest.param(name, way, marks=() if (name, way) in QUICK else pytest.mark.slow)
    for way in ("full", "lora")
    for name in CASES
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_what_was_trained_is_what_transformers_loads(tmp_path, name, way):
    """5 steps; every logit of the export in transformers equals ours to 1e-4."""
    case = CASES[name]
    loaded = Loaded(case, case.make(tmp_path / "model"))
    config = common.get_config()
    config.model.path, config.mesh.fsdp = str(loaded.folder), 1
    config.pack.rows, config.train.steps, config.train.save_every = 3, 5, 5
    config.train.learning_rate, config.train.warmup_steps = 3e-3, 1
    if way == "lora":
        config.lora.rank, config.lora.alpha, config.lora.dropout = 4, 8.0, 0.1
        config.lora.targets, config.train.learning_rate = LORA, 3e-2
    train(config, tmp_path / "run", examples=Trees(loaded))
    _, params = newest_params(config, tmp_path / "run")
    ours = loaded.logits(ANSWERS, params)
    before = loaded.logits(ANSWERS)
    assert min(np.abs(a - b).max() for a, b in zip(ours, before)) > 0.1
    export(tmp_path / "run", tmp_path / "out")
    theirs = loaded.oracle_logits(ANSWERS, folder=tmp_path / "out")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b[:, : a.shape[1]], atol=1e-4, rtol=0)
    assert len(QUESTIONS) == len(ours)
