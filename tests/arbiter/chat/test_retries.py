"""How long to wait, as servers say it."""

from __future__ import annotations

import email.utils

import pytest

from srpo_jax.arbiter.chat.retries import MAX_WAIT, backoff, told, wait_asked

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "86400"}, MAX_WAIT),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
    ],
)
def test_retry_after(headers, seconds):
    """In milliseconds, seconds or as a date; never below 0 nor above the bound."""
    assert wait_asked(headers, NOW) == seconds


def test_backoff_doubles_up_to_a_bound():
    for tries in range(1, 12):
        waits = [backoff(tries, 0.5) for _ in range(50)]
        longest = min(0.5 * 2 ** (tries - 1), 30.0)
        assert all(longest / 2 <= wait <= longest for wait in waits) and len(set(waits)) > 1


def test_what_errors_say():
    """In the shapes of OpenAI, of FastAPI, and of servers that say nothing."""
    openai = {"message": "m", "type": "t", "code": "insufficient_quota", "param": "p"}
    assert told({"error": openai}, "f") == told(openai, "f") == ("m", "insufficient_quota", "p")
    assert told({"detail": "Unexpected fields: {'seed'}"}, "f")[0] == "Unexpected fields: {'seed'}"
    assert told({"error": "text"}, "f") == ("text", "", None)
    assert told(None, "f") == told({}, "f") == ("f", "", None)
