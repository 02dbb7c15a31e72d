"""Samples on one device and on meshes of eight virtual CPU devices, and prints all as JSON.

A script for test_engine_mesh.py, which starts it with eight devices; argument: an empty folder.
"""

import json
import math
import pathlib
import sys

import jax
import numpy as np

from srpo_jax.config.convert import as_config
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import load_policy, rows_over
from srpo_jax.inference.sampling_mesh import describe
from srpo_jax.models.attention import xla
from tests.support import tiny
from tests.support.engines import make_engine, often_ending
from tests.support.small_world import write_world

MESHES = {
    "auto": ("auto", "all there is"),
    "tensor": ("data=2,tensor=4", "all there is"),
    "fsdp": ("fsdp=2", "plain"),
}
WAYS = {
    "plain": dict(sampling=Sampling(3.0)),
    "all there is": dict(
        sampling=Sampling(3.0, top_p=0.95, repetition_penalty=1.2, presence_penalty=0.3),
        stop=("e",),
    ),
}
tiny.KV_HEADS = 4  # which tensor=4 divides
xla.OWN_BLOCK = 4  # so that a branch has several blocks
config = write_world(pathlib.Path(sys.argv[1]))
config.mesh.fsdp = 64  # of training: nothing here obeys it


def policy_on(mesh):
    config.explore.mesh = mesh
    return load_policy(as_config(config))


def sample(policy, model, params, rows, mesh, ways):
    processor = policy.processor
    path = np.asarray(processor.encode("Look at it.\n"), np.int32)
    requests = []
    for i in range(11):
        prompt = processor.encode_question("What is it?", [tiny.picture(84, 56, seed=i % 3)])
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


def parts(policy):
    up = policy.params["layers"]["mlp"]["up"]["kernel"]
    return up.size // math.prod(up.sharding.shard_shape(up.shape))


policies = {name: policy_on(mesh) for name, (mesh, _) in MESHES.items()}
first = policies["auto"]
alone = jax.device_put(jax.device_get(first.params), jax.devices()[0])
plain = first.model.clone(constrain=lambda x, kind: x)
result = {
    "sizes": {name: describe(policy.mesh) for name, policy in policies.items()},
    "rows": {name: rows_over(policy.mesh, 3) for name, policy in policies.items()},
    "parts": {name: parts(policy) for name, policy in policies.items()},
    "one": sample(first, plain, alone, 2, None, WAYS),
}
result["meshes"] = {
    name: sample(
        policy, policy.model, policy.params, result["rows"][name], policy.mesh, [MESHES[name][1]]
    )
    for name, policy in policies.items()
}
print(json.dumps(result))
