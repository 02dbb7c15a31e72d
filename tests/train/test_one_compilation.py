"""A whole run is one program: nothing is compiled after its first step."""

from __future__ import annotations

import hashlib
import io

import jax
import numpy as np

from srpo_jax.configs import common
from srpo_jax.train import loop as module
from srpo_jax.train.loop import train
from tests.support import judged
from tests.support.tiny import picture, tiny_qwen2_5_vl
from tests.train.test_loop import tree_record

STEPS = 200
COMPILED = "/jax/core/compile/backend_compile_duration"


def mixed_record(i: int) -> dict:
    """A tree of test_train with none to two pictures of 28..168 x 28..168 pixels, and one more safe
    branch at every point, so that an epoch draws other pairs than the one before."""
    rng = np.random.default_rng(100 + i)
    images = []
    for number in range(i % 3):
        width, height = (int(n) for n in rng.integers(28, 169, 2))
        buffer = io.BytesIO()
        picture(width, height, i + number).save(buffer, "PNG")
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        images.append({"name": f"{number}.png", "sha256": digest, "data": data})
    record = tree_record(i)
    more = [
        judged.branch(
            branch["at"], 2, tokens=rng.integers(0, 256, int(rng.integers(2, 20))).tolist()
        )
        for branch in record["branches"]
        if branch["reply_verdict"] == "SAFE"
    ]
    return record | {"images": images, "branches": record["branches"] + more}


def test_200_steps_over_mixed_trees_compile_once(tmp_path, monkeypatch):
    """Trees of many shapes, pictures of many sizes, other pairs in every epoch: the step has one
    entry in its cache, and from the second step to the last nothing at all is compiled."""
    tiny_qwen2_5_vl(tmp_path / "model")
    records = [mixed_record(i) for i in range(40)]
    judged.write_judged(tmp_path / "trees", records)
    config = common.get_config()
    config.model.path, config.data.trees = str(tmp_path / "model"), str(tmp_path / "trees")
    config.pack.rows, config.objective.pairing, config.mesh.fsdp = 1, "one", 1
    config.pack.row_tokens = 256  # rows of several trees: others in every epoch
    config.train.steps, config.train.save_every, config.train.log_every = STEPS + 1, STEPS + 1, 50

    shapes, compiled, made = [], [], []
    put, make = module.put_batch, module.make_train_step

    def put_and_look(batch, mesh):
        ends = batch["subtree_end"]
        shapes.append((ends.tobytes(), int((batch["full_seg"] >= 0).sum())))
        return put(batch, mesh)

    def listen(event: str, duration: float, **_) -> None:
        if event == COMPILED:
            compiled.append(len(shapes))  # the step that was under way

    monkeypatch.setattr(module, "put_batch", put_and_look)
    monkeypatch.setattr(
        module, "make_train_step", lambda *a, **k: made.append(make(*a, **k)) or made[0]
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(config, tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert made[0]._cache_size() == 1
    assert 1 in compiled  # the listener hears of the first step
    assert not [step for step in compiled if 2 <= step <= STEPS]
    # The run was what it says: many shapes of trees, many numbers of patches.
    assert len(shapes) == STEPS + 1 and len(set(shapes)) > 50
    assert len({patches for _, patches in shapes}) > 8
