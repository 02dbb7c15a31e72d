"""Samples on one device and on meshes of four virtual CPU devices, and prints both as JSON.

A script for test_engine_mesh.py, which starts it with four devices; argument: an empty folder.
"""

import json
import math
import pathlib
import sys

import jax
import numpy as np

from srpo_jax.config.convert import as_config
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import load_policy, rows_over
from srpo_jax.inference.sampling_mesh import describe
from tests.support.small_world import write_world
from tests.support.tiny import picture

config = write_world(pathlib.Path(sys.argv[1]))
config.mesh.fsdp = 64  # of training: nothing here obeys it
meshes = {"fsdp": "fsdp=2", "tensor": "data=2,tensor=2", "auto": "auto"}
policies = {}
for name, mesh in meshes.items():
    config.explore.mesh = mesh
    policies[name] = load_policy(as_config(config))
policy = policies["fsdp"]
path = np.asarray(policy.processor.encode("Look at it.\n"), np.int32)
requests = []
for i in range(5):
    prompt = policy.processor.encode_question("What is it?", [picture(84, 56, seed=i)])
    requests.append(SampleRequest(prompt, path, (0, 2, len(path)), (i, i + 10, i + 20)))


def sample(model, params, batch, mesh):
    engine = Engine(
        model,
        params,
        policy.processor,
        rows=batch,
        branches=3,
        prompt_tokens=112,
        patches=32,
        max_new_tokens=10,
        sampling=Sampling(3.0),
        mesh=mesh,
    )
    return [[s.tokens.tolist() for s in own] for own in engine(requests)]


alone = jax.device_put(jax.device_get(policy.params), jax.devices()[0])


def parts(policy):
    up = policy.params["layers"]["mlp"]["up"]["kernel"]
    return up.size // math.prod(up.sharding.shard_shape(up.shape))


result = {
    "one": sample(policy.model.clone(constrain=lambda x, kind: x), alone, 2, None),
    "sizes": {name: describe(each.mesh) for name, each in policies.items()},
    "rows": {name: rows_over(each.mesh, 3) for name, each in policies.items()},
    "parts": {name: parts(each) for name, each in policies.items()},
}
for name, each in policies.items():
    result[name] = sample(each.model, each.params, result["rows"][name], each.mesh)
print(json.dumps(result))
