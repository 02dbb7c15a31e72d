"""Samples on one device and on meshes of eight virtual CPU devices, and prints all as JSON.

A script for test_engine_mesh.py, which starts it with eight devices; argument: an empty folder.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from srpo_jax.config.convert import as_config
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import load_policy
from srpo_jax.models.attention import xla
from tests.support.engines import make_engine, often_ending
from tests.support.small_world import write_world
from tests.support.tiny import picture

MESHES = {
    "data 8": (dict(data=8, fsdp=1, tensor=1), "all there is"),
    "data 2, tensor 4": (dict(data=2, fsdp=1, tensor=4), "all there is"),
    "data 4, fsdp 2": (dict(data=4, fsdp=2, tensor=1), "plain"),
}
WAYS = {
    "plain": dict(sampling=Sampling(3.0)),
    "all there is": dict(
        sampling=Sampling(3.0, top_p=0.95, repetition_penalty=1.2, presence_penalty=0.3),
        stop=("e",),
    ),
}
xla.OWN_BLOCK = 4  # so that a branch has several blocks
config = write_world(pathlib.Path(sys.argv[1]))


def policy_on(mesh):
    for axis, size in mesh.items():
        config.mesh[axis] = size
    return load_policy(as_config(config))


def sample(policy, model, params, rows, mesh, ways):
    processor = policy.processor
    path = np.asarray(processor.encode("Look at it.\n"), np.int32)
    requests = []
    for i in range(11):
        prompt = processor.encode_question("What is it?", [picture(84, 56, seed=i % 3)])
        starts = (0, 2, len(path), 1, 0)[: 1 + i % 5]
        seeds = tuple(range(10 * i, 10 * i + len(starts)))
        requests.append(SampleRequest(prompt, path, starts, seeds))
    found = {}
    for name in ways:
        sizes = dict(prompt_tokens=112, patches=32, max_new_tokens=10, rows=rows, branches=4)
        ending = often_ending((model, params, processor), 9)
        engine = make_engine(ending, slots=2, mesh=mesh, **sizes, **WAYS[name])
        found[name] = [
            [(s.tokens.tolist(), s.finished, s.logp) for s in own] for own in engine(requests)
        ]
    return found


policies = {name: policy_on(mesh) for name, (mesh, _) in MESHES.items()}
first = next(iter(policies.values()))
alone = jax.device_put(jax.device_get(first.params), jax.devices()[0])
plain = first.model.clone(constrain=lambda x, kind: x)
result = {"one": sample(first, plain, alone, 2, None, WAYS)}
for name, policy in policies.items():
    ways = [MESHES[name][1]]
    result[name] = sample(policy, policy.model, policy.params, policy.rows(3), policy.mesh, ways)
result["rows"] = {name: policy.rows(3) for name, policy in policies.items()}
kernel = policies["data 4, fsdp 2"].params["layers"]["mlp"]["up"]["kernel"]
result["sharded"] = not kernel.sharding.is_fully_replicated
print(json.dumps(result))
