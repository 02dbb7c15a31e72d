"""A tiny policy, prompts with no, one and two ragged pictures, its plain logits, and an engine that
several tests share: compiling costs more than sampling."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from tests.support.engines import (
    COUNTS,
    PATCHES,
    TOKENS,
    mixed_requests,
    often_ending,
    refilling_engine,
    short_blocks,
)
from tests.support.tiny import picture, tiny_qwen2_5_vl


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="session")
def policy(folder):
    """(model, params, processor)."""
    processor = Processor.from_dir(folder)
    return PolicyModel(processor.config), load_params(folder, processor.config), processor


@pytest.fixture(scope="session")
def pictures():
    return [picture(84, 112, seed=1), picture(140, 56, seed=2)]


@pytest.fixture(scope="session")
def prompts(policy, pictures):
    processor = policy[2]
    return [
        processor.encode_question("What is in this image?", pictures[:1]),
        processor.encode_question("Compare <image> with <image>, please.", pictures),
        processor.encode_question("No picture here.", []),
    ]


@pytest.fixture(scope="session")
def full_logits(policy):
    """(prompt, continuation of m tokens) -> float32 [m + 1, V]: what predicts each token of the
    continuation, and the one after it. Never cached, never batched."""
    model, params, _ = policy
    head = head_matrix(params, model.config)
    forward = jax.jit(lambda inputs: model.apply({"params": params}, inputs)[0] @ head)

    def run(prompt, continuation):
        row = causal_row(prompt, continuation)
        room = -(-len(row["tokens"]) // TOKENS) * TOKENS
        logits = forward(pad_rows([row], tokens=room, patches=PATCHES))
        return np.array(logits[len(prompt.tokens) - 1 : len(row["tokens"])], np.float32)

    return run


@pytest.fixture(scope="session")
def ending(policy):
    return often_ending(policy, 9)


@pytest.fixture(scope="session")
def requests(policy, prompts):
    return mixed_requests(prompts, policy[2], COUNTS)


@pytest.fixture(scope="session")
def compilations():
    """The seconds of every program that XLA compiled since, whoever asked for it."""
    found: list[float] = []

    def note(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="session")
def refilled(ending, requests, compilations):
    """(an engine of two slots a row, what it said to all requests, the programs that took)."""
    engine = refilling_engine(ending)
    before = len(compilations)
    with short_blocks():
        return engine, engine(requests), len(compilations) - before
