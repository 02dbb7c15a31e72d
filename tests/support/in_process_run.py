"""Judges on eight virtual devices and prints what was said, as JSON.

A script for arbiter/in_process/test_policy_chat.py; arguments: the folder of the checkpoints, and
their names.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax

from srpo_jax.arbiter.in_process.policy_chat import PolicyChat
from srpo_jax.config.fields import Config
from srpo_jax.config.sampling_sections import ExploreSettings
from tests.arbiter.in_process.test_policy_chat import STEPS, request_of

config = Config(explore=ExploreSettings(mesh="data=2,fsdp=2,tensor=2"))
result: dict = {"devices": jax.device_count()}
for name in sys.argv[2:]:
    chat = PolicyChat(str(pathlib.Path(sys.argv[1], name)), config, labels=True, batch=2)
    replies = chat.complete([request_of(i, STEPS) for i in range(3)])
    result[name] = [(reply.text, reply.logprobs) for reply in replies]
    kernel = chat._network.params["layers"]["mlp"]["up"]["kernel"]
    result["sharded"] = not kernel.sharding.is_fully_replicated
print(json.dumps(result))
