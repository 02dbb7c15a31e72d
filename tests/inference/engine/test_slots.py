"""Slots that refill: a branch is the same in every engine, and few slots stand idle."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from srpo_jax.inference.engine import slots
from srpo_jax.inference.engine.counts import Counts
from srpo_jax.inference.engine.engine import slots_for
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.plan.sampling.workload import row_steps
from tests.support.engines import NEW, mixed_requests, refilling_engine, short_blocks, told


def test_slots_are_in_use(refilled, policy, prompts):
    """Branches whose mean length is a third of the longest: at least 90 % of the slots have one at
    every step, where without refilling more than half stand idle (the next test). By counts, not by
    time."""
    engine = refilled[0]
    engine.counts = counts = Counts()
    samples = engine(mixed_requests(prompts, policy[2], [24] * 24))
    lengths = [len(sample.tokens) for own in samples for sample in own]
    assert 0.25 * NEW < np.mean(lengths) < 0.4 * NEW and max(lengths) == NEW and min(lengths) == 1
    assert counts.slots_in_use >= 0.9
    assert counts.branches == len(lengths) == 24 * 24
    assert counts.tokens == sum(lengths)
    assert counts.finished == sum(sample.finished for own in samples for sample in own)
    assert counts.used == counts.tokens - counts.branches  # the first token is the prefill's
    assert counts.slot_steps == counts.steps * 2 * 2
    assert counts.questions == 24


def test_a_branch_is_the_same_without_refilling(refilled, ending, requests):
    """Tokens and end, one row at a time in which no slot is taken twice (test_shapes.py has other
    shapes); log-probabilities to 1e-5 a token."""
    engine = refilling_engine(ending, rows=1, branches=20, slots=20)
    with short_blocks():
        samples = engine(requests)
    assert told(samples) == told(refilled[1])
    for ours, theirs in zip(sum(samples, []), sum(refilled[1], []), strict=True):
        assert ours.logp == pytest.approx(theirs.logp, abs=1e-5 * len(ours.tokens))
    assert engine.counts.slots_in_use < 0.5


def test_logp_is_that_of_teacher_forcing(refilled, policy, requests, full_logits):
    """1e-5 a token: what a branch was drawn from are the logits of its own path, computed whole and
    without a cache, over several blocks of its own keys and beside branches of other lengths."""
    processor = policy[2]
    longest = 0
    for request, samples in list(zip(requests, refilled[1], strict=True))[:3]:
        for start, sample in list(zip(request.starts, samples, strict=True))[:8]:
            tokens = [*request.path[:start].tolist(), *sample.tokens.tolist()]
            logits = full_logits(request.prompt, tokens)
            logits[:, list(processor.suppress_ids)] = -np.inf
            logp = np.asarray(jax.nn.log_softmax(logits))[
                np.arange(start, len(tokens)), sample.tokens
            ]
            assert sample.logp == pytest.approx(logp.sum(), abs=1e-5 * len(sample.tokens))
            longest = max(longest, len(sample.tokens))
    assert longest > 15


def test_it_compiles_once(refilled, requests, compilations):
    """One program for prefilling and one for decoding, of a run with questions of every size; a
    second run compiles nothing at all."""
    engine, samples, programs = refilled
    assert programs == 4 and sorted(engine._compiled) == ["decode", "empty", "prefill", "read"]
    programs, before = dict(engine._compiled), len(compilations)
    again = engine(requests[::-1])
    assert told(again[::-1]) == told(samples)
    assert len(compilations) == before
    assert engine._compiled == programs


def test_a_second_engine_of_the_same_programs_compiles_nothing(
    refilled, ending, requests, compilations
):
    """Who evaluates several policies of one kind compiles once; with other slots it is another
    program."""
    with short_blocks():
        refilling_engine(ending)(requests[:1])  # those of long ago are no longer kept
        before = len(compilations)
        assert told(refilling_engine(ending)(requests)) == told(refilled[1])
        assert len(compilations) == before
        assert told(refilling_engine(ending, slots=3)(requests[:1])) == told(refilled[1][:1])
        assert len(compilations) > before


def test_ends_of_all_kinds(refilled, ending, requests):
    """A branch has its end token and nothing after it, as its first token too, and is finished by
    that alone; a question without branches has none."""
    _, samples, _ = refilled
    ends = set(ending[2].eos_ids)
    for request, own in zip(requests, samples, strict=True):
        assert len(own) == len(request.starts)
        for sample in own:
            ended = [token in ends for token in sample.tokens.tolist()]
            assert not any(ended[:-1]) and ended[-1] == sample.finished
            assert sample.finished or len(sample.tokens) == NEW
    assert any(len(s.tokens) == 1 and s.finished for own in samples for s in own)
    assert any(not s.finished for own in samples for s in own)


def test_early_branches_are_taken_first(policy, prompts, refilled):
    """Those with the most to say begin, so that a row's last ones are short; of equal ones the one
    that was asked for first."""
    engine, _, _ = refilled
    path = np.asarray(policy[2].encode("Look at it.\n"), np.int32)
    starts = (3, 0, 5, 0, 3)
    request = SampleRequest(prompts[2], path, starts, tuple(range(5)))
    queue = engine._queue(request, slice(0, 5))
    order = np.argsort(-np.where(queue.wanted, queue.priority, -1)[0], kind="stable")[:5]
    assert [starts[i] for i in order] == [0, 0, 3, 3, 5]


@pytest.mark.parametrize("branches, slots", [(1, 1), (8, 1), (9, 2), (48, 4), (96, 6), (900, 16)])
def test_so_many_slots_are_idle_for_a_tenth_of_the_time_at_most(branches, slots):
    """Of branches whose lengths are independent and skewed (exponential)."""
    assert slots_for(branches) == slots
    lengths = np.ceil(np.random.default_rng(0).exponential(200, (1000, branches)))
    steps = sum(row_steps(own, slots) for own in lengths)
    assert (lengths - 1).sum() / (steps * slots) >= 0.89  # 0.9 in the mean


@pytest.mark.parametrize("chunk", [3, pytest.param(64, marks=pytest.mark.slow)])
def test_a_stop_string_ends_a_branch_at_its_token(refilled, ending, requests, monkeypatch, chunk):
    """Cut at the token that completes the first stop string, however many steps lie between two
    looks; what says none is as it was without."""
    monkeypatch.setattr(slots, "STEPS", chunk)
    stops = stops_of(refilled[1], ending[2])
    engine = refilling_engine(ending, stop=stops)
    with short_blocks():
        samples = engine(requests)
    cut = 0
    for ours, plain in zip(samples, refilled[1], strict=True):
        for sample, whole in zip(ours, plain, strict=True):
            tokens = whole.tokens.tolist()
            said = [
                any(stop in ending[2].decode(tokens[:n]) for stop in stops)
                for n in range(1, len(tokens) + 1)
            ]
            size = said.index(True) + 1 if any(said) else len(tokens)
            assert sample.tokens.tolist() == tokens[:size]
            assert sample.finished == (any(said) or whole.finished)
            assert (size == len(tokens)) == (abs(sample.logp - whole.logp) < 1e-4)
            cut += size < len(tokens)
    assert cut > 10
    # What was halted is not decoded on: with short chunks far fewer steps than without.
    if chunk == 3:
        lengths = [len(sample.tokens) for own in refilled[1] for sample in own]
        assert engine.counts.used < 0.8 * sum(lengths)


def stops_of(samples, ids) -> tuple[str, ...]:
    """Two texts that branches say: the commonest pair of letters, and a pair of which one token
    has the first and the next token the second."""
    long = [s.tokens.tolist() for own in samples for s in own if len(s.tokens) > 8]
    texts = [ids.decode(tokens) for tokens in long]
    pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
    pairs = sorted(pair for pair in pairs if pair.isascii() and pair.isprintable())
    parts = [[ids.decode([token]) for token in tokens] for tokens in long]
    borders = [a[-1:] + b[:1] for own in parts for a, b in zip(own, own[1:])]
    borders = sorted(pair for pair in borders if pair in pairs)
    return max(pairs, key=pairs.count), borders[len(borders) // 2]
