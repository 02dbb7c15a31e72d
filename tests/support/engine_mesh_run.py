"""Samples on one device and on a 2x2 mesh of virtual CPU devices, and prints both as JSON.

A script for test_engine_mesh.py, which starts it with four devices; argument: an empty folder.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from srpo_jax.config.convert import as_config
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import load_policy
from tests.support.small_world import write_world
from tests.support.tiny import picture

config = write_world(pathlib.Path(sys.argv[1]))
config.mesh.data, config.mesh.fsdp = 2, 2
policy = load_policy(as_config(config))
path = np.asarray(policy.processor.encode("Look at it.\n"), np.int32)
requests = []
for i in range(5):
    prompt = policy.processor.encode_question("What is it?", [picture(84, 56, seed=i)])
    requests.append(SampleRequest(prompt, path, (0, 2, len(path)), (i, i + 10, i + 20)))


def sample(model, params, rows, mesh):
    engine = Engine(
        model,
        params,
        policy.processor,
        rows=rows,
        branches=3,
        prompt_tokens=112,
        patches=32,
        max_new_tokens=10,
        sampling=Sampling(temperature=3.0),
        mesh=mesh,
    )
    return [[s.tokens.tolist() for s in own] for own in engine(requests)]


alone = jax.device_put(jax.device_get(policy.params), jax.devices()[0])
result = {
    "one": sample(policy.model.clone(constrain=lambda x, kind: x), alone, 2, None),
    "mesh": sample(policy.model, policy.params, policy.rows(3), policy.mesh),
    "rows": policy.rows(3),
    "sharded": not policy.params["layers"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated,
}
print(json.dumps(result))
