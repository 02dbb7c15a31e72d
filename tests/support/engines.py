"""Engines over the tiny policy, and policies whose branches end at all lengths."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np

from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.models.attention import xla

TOKENS, PATCHES = 160, 96
NEW = 24
# Branches of questions: more than a row of `refilling_engine` has, one, and none.
COUNTS = (16, 7, 40, 0, 16, 1, 16, 12, 16, 16, 3, 16)


def make_engine(policy, temperature=1.0, **options):
    """policy: (model, params, processor, or what knows the ids instead of one)."""
    sizes = dict(rows=2, branches=4, prompt_tokens=TOKENS, patches=PATCHES, max_new_tokens=8)
    return Engine(*policy, **{**sizes, "sampling": Sampling(temperature), **options})


def refilling_engine(ending, **options):
    """Rows of 24 branches and two slots, unless told otherwise."""
    sizes = {"rows": 2, "branches": 24, "slots": 2, "max_new_tokens": NEW}
    return make_engine(ending, temperature=3.0, **{**sizes, **options})


def short_blocks() -> contextlib.AbstractContextManager:
    """What is compiled within reads a branch's own keys five tokens at a time, so that few tokens
    are several blocks."""
    return mock.patch.object(xla, "OWN_BLOCK", 5)


def often_ending(policy, every: int):
    """The policy, of which every so-manyth id ends a branch: its lengths are spread as those of
    coin tosses are."""
    model, params, processor = policy
    ordinary = sorted(set(range(processor.config.text.vocab_size)) - set(processor.suppress_ids))

    class Ids:
        eos_ids = tuple(ordinary[::every])
        suppress_ids = (*processor.suppress_ids, *eos_ids)  # an end token is never suppressed
        decode = processor.decode

    return model, params, Ids


def reference_path(processor):
    """(two steps as int32 [m], where each begins and where they end)."""
    pieces = [processor.encode(text) for text in ("Look at it.\n", "It is a kitchen.\n")]
    starts = [0, len(pieces[0]), len(pieces[0]) + len(pieces[1])]
    return np.asarray(sum(pieces, []), np.int32), starts


def mixed_requests(prompts, processor, counts) -> list[SampleRequest]:
    """One request for each of `counts`: so many branches, from any place of the path, of prompts
    with and without pictures in turn."""
    path, _ = reference_path(processor)
    rng = np.random.default_rng(5)
    return [
        SampleRequest(
            prompts[i % len(prompts)],
            path,
            tuple(rng.integers(0, len(path) + 1, count).tolist()),
            tuple(range(1000 * i, 1000 * i + count)),
            f"record 'r{i}'",
        )
        for i, count in enumerate(counts)
    ]


def told(samples) -> list[list[tuple[list[int], bool]]]:
    """What is to be equal, whatever an engine's shape is."""
    return [[(s.tokens.tolist(), s.finished) for s in own] for own in samples]
