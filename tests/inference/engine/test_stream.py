"""Engine.stream: requests that come one by one, fail, or are not wanted any more."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from srpo_jax.errors import UserError
from tests.support.engines import COUNTS, told


@pytest.fixture
def engine(refilled):
    return refilled[0]


@pytest.fixture
def expected(refilled):
    return told(refilled[1])


def test_every_question_comes_once_as_it_is_done(engine, requests, expected):
    """Numbered by its place among the requests, which are taken a few beforehand: the first answer
    does not wait for the last question."""
    asked, found = [], {}

    def source():
        for i in range(60):
            asked.append(i)
            yield requests[i % len(requests)]

    for number, samples in engine.stream(source()):
        assert number not in found
        if not found:
            assert len(asked) < 20
        found[number] = samples
    assert sorted(found) == list(range(60))
    assert all(told([found[i]]) == [expected[i % len(requests)]] for i in found)


@pytest.mark.parametrize("wrong", ["raises", "too long", "interrupted"])
def test_what_is_wrong_comes_after_all_before_it(engine, requests, expected, wrong):
    """Whole answers to what was asked before; nothing of what comes after; and the engine goes on
    with others."""

    def source():
        yield from requests[:5]
        if wrong == "too long":
            long = np.zeros(engine.shape.tokens, np.int32)
            yield dataclasses.replace(requests[5], path=long, name="record 'r5'")
            pytest.fail("asked for the one after")
        raise ValueError("no such picture") if wrong == "raises" else KeyboardInterrupt

    error, said = {
        "raises": (ValueError, "no such picture"),
        "too long": (UserError, "record 'r5': its prompt and path are .* tokens"),
        "interrupted": (KeyboardInterrupt, None),
    }[wrong]
    found = {}
    with pytest.raises(error, match=said):
        for number, samples in engine.stream(source()):
            found[number] = samples
    assert told([found[i] for i in sorted(found)]) == expected[:5] and len(found) == 5
    assert told(engine(requests)) == expected


def test_a_live_source_keeps_nobody_waiting(engine, requests, expected):
    """Who is at work goes on while nobody else is there, whoever comes then is taken, and all have
    what they have elsewhere. When it is no longer live, at once nobody is answered any more."""
    found, asked = {}, []

    def source():
        for i in range(24):
            asked.append(threading.current_thread())
            yield requests[i % len(requests)]
            while i % 5 == 0 and len(found) <= i:
                yield None

    for number, samples in engine.stream(source(), live=lambda: True):
        found[number] = samples
    assert all(told([found[i]]) == [expected[i % len(requests)]] for i in range(24))
    assert set(asked) == {threading.current_thread()} and len(found) == 24
    left = []
    for number, _ in engine.stream(requests, live=lambda: len(left) < 3):
        left.append(number)
    assert 3 <= len(left) < len(requests) and told(engine(requests)) == expected


def test_who_leaves_in_the_middle_leaves_an_engine_that_works(engine, requests, expected):
    """No row is taken for ever, no thread goes on reading, and the next run has nothing of it."""
    for count in (1, 3):
        stream = engine.stream(iter(requests))
        for _ in range(count):
            next(stream)
        stream.close()
        assert not any(thread.name == "ahead" for thread in threading.enumerate())
        assert told(engine(requests)) == expected
    assert engine([]) == [] and list(engine.stream([])) == []


def test_a_question_without_branches_has_none(engine, requests, expected):
    """Alone, and first or last of several."""
    empty = requests[COUNTS.index(0)]
    assert engine([empty]) == [[]]
    assert told(engine([empty, requests[0], empty])) == [[], expected[0], []]
