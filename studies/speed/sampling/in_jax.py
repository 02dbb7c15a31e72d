"""The engine of a checkout of this repository, or the sampler that stood in its place before; see
__main__.py, which starts this with the folder of the checkout."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import types
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
TREE, SETTING = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [TREE, str(pathlib.Path(__file__).resolve().parent)]

import questions as asked  # noqa: E402  (of this checkout, whatever TREE is)

from srpo_jax.models.hf.load import load_params  # noqa: E402
from srpo_jax.models.inputs import encode_prompt  # noqa: E402
from srpo_jax.models.policy_model import PolicyModel  # noqa: E402
from srpo_jax.models.registry import load_model_config  # noqa: E402

BEFORE = 4  # questions at a time of the sampler that was there before, as explore chose them then


def main() -> None:
    sizes = asked.QUICK if SETTING["quick"] else asked.Sizes()
    folder = pathlib.Path(SETTING["folder"])
    config = load_model_config(folder, "")
    model, params = PolicyModel(config), load_params(folder, config)
    ids: Any = types.SimpleNamespace(eos_ids=tuple(asked.ends(sizes)), suppress_ids=())
    found = asked.questions(sizes, SETTING["questions"], config.vision.patch_dim)
    prompts = [encode_prompt(q.ids, [(q.patches, q.grid)], config) for q in found]
    branches = sizes.steps * sizes.branches
    room: dict[str, Any] = dict(
        branches=branches,
        prompt_tokens=-(-(len(found[0].ids) + len(found[0].path)) // 16) * 16,
        patches=len(found[0].patches),
        max_new_tokens=sizes.new_tokens,
    )
    try:
        from srpo_jax.inference.engine.drawing import Sampling
        from srpo_jax.inference.engine.engine import Engine, slots_for
        from srpo_jax.inference.engine.requests import SampleRequest
    except ImportError:
        before = importlib.import_module("srpo_jax.inference.prefix_sampler")
        SampleRequest = before.SampleRequest
        rows = min(BEFORE, len(found))
        sampler: Any = before.Sampler(model, params, ids, batch=rows, temperature=1.0, **room)
    else:
        from srpo_jax.inference.sampling_mesh import slots_that_pay

        rows = min(slots_that_pay() // slots_for(branches), len(found))
        sampler = Engine(model, params, ids, rows=rows, sampling=Sampling(1.0), **room)
    requests = [
        SampleRequest(prompt, q.path, q.starts, tuple(range(i * branches, (i + 1) * branches)))
        for i, (prompt, q) in enumerate(zip(prompts, found, strict=True))
    ]

    def call() -> dict[str, float]:
        counts = getattr(sampler, "counts", None)
        start = (counts.used, counts.slot_steps) if counts else (0, 0)
        samples = sampler(requests)
        lengths = [len(sample.tokens) for own in samples for sample in own]
        told: dict[str, float] = {"tokens": sum(lengths), "branches": len(lengths)}
        if counts:
            used, steps = counts.used - start[0], counts.slot_steps - start[1]
            told["slots_in_use"] = used / max(steps, 1)
        return told

    asked.serve(call)


if __name__ == "__main__":
    main()
