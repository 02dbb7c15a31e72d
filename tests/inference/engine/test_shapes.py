"""Whatever the shape of an engine is, a branch is the same: the sizes of real runs."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from srpo_jax.models.attention.xla import OWN_BLOCK
from tests.support.engines import make_engine, mixed_requests, often_ending, told

pytestmark = pytest.mark.slow
COUNTS = (30, 1, 24, 7, 0, 30, 2, 50, 9, 24)
SHAPES = [  # rows, slots, branches of a row
    (1, 4, 24),
    (1, 24, 24),
    (8, 1, 24),
    (8, 4, 24),
    (8, 16, 16),
    (64, 1, 5),
    (64, 4, 24),
]


@pytest.fixture(scope="module", params=[OWN_BLOCK - 40, OWN_BLOCK + 72], ids=["short", "long"])
def least(request, policy, prompts):
    """(tokens of a branch, policy, requests, what an engine of one slot says to them)."""
    ending = often_ending(policy, 60)
    requests = mixed_requests(prompts, policy[2], COUNTS)
    engine = make_engine(ending, 3.0, rows=1, branches=24, slots=1, max_new_tokens=request.param)
    samples = engine(requests)
    assert engine.counts.slots_in_use == 1
    return request.param, ending, requests, samples


@pytest.mark.parametrize("rows, slots, branches", SHAPES)
def test_rows_and_slots_change_no_branch(least, rows, slots, branches):
    """Tokens and ends, in rows that refill their slots and in rows that need not, with more
    branches than a row has, and with branches longer and shorter than a block of their own keys;
    log-probabilities to 1e-5 a token."""
    new, ending, requests, expected = least
    sizes = dict(rows=rows, slots=slots, branches=branches, max_new_tokens=new)
    samples = make_engine(ending, 3.0, **sizes)(requests)
    assert told(samples) == told(expected)
    for ours, theirs in zip(sum(samples, []), sum(expected, []), strict=True):
        assert ours.logp == pytest.approx(theirs.logp, abs=1e-5 * len(ours.tokens))


def test_long_branches_are_teacher_forced(least, policy, full_logits):
    """Log-probabilities of whole branches, to 1e-5 a token, by a pass without a cache."""
    new, _, requests, samples = least
    lengths = {len(sample.tokens) for own in samples for sample in own}
    assert max(lengths) == new and min(lengths) < 20
    for request, own in zip(requests[:3], samples[:3], strict=True):
        for start, sample in list(zip(request.starts, own, strict=True))[:6]:
            tokens = [*request.path[:start].tolist(), *sample.tokens.tolist()]
            logits = full_logits(request.prompt, tokens)
            logits[:, list(policy[2].suppress_ids)] = -np.inf
            logp = np.asarray(jax.nn.log_softmax(logits))
            said = logp[np.arange(start, len(tokens)), sample.tokens].sum()
            assert sample.logp == pytest.approx(said, abs=1e-5 * len(sample.tokens))
