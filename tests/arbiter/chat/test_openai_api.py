"""Asking a server: retries, fields it does not know, what ends a stage, keys, many at once."""

from __future__ import annotations

import json
import sys
import time

import pytest

from srpo_jax.arbiter.chat.messages import ChatRequest, Message
from srpo_jax.arbiter.chat.openai_api import OpenAIChat, host_of, is_loopback
from srpo_jax.arbiter.chat.wire import read_completion
from srpo_jax.arbiter.prompted.untrusted import block
from srpo_jax.errors import UserError
from tests.support.chat_stub import ChatStub

SCHEMA = {"type": "object"}
SLOW_DOWN = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}


def request(i: int = 0, **fields) -> ChatRequest:
    messages = Message("system", ("judge",)), Message("user", (block("reply", f"text {i}"),))
    wanted = {"temperature": 0.5, "max_tokens": 9, "seed": 7, "schema": SCHEMA, **fields}
    return ChatRequest("m", messages, **wanted)


def backend(url: str, **options) -> OpenAIChat:
    return OpenAIChat(url, **{"timeout_seconds": 5.0, "retries": 2, "first_wait": 0.01, **options})


def test_what_is_asked_and_what_comes_back():
    """The fields of the API by their names; usage and the name of who answered; no retry header of
    the client's own, no key where there is none.
    """
    with ChatStub() as stub:
        (reply,) = backend(stub.url).complete([request(labels=("safe", "unsafe"))])
        (body,) = stub.bodies
        assert stub.headers[0]["authorization"] == "Bearer none"
    assert {k: v for k, v in body.items() if k != "messages"} == {
        "model": "m",
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 10,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    }
    assert json.loads(reply.text or "")["verdict"] == "safe"
    assert (reply.model, reply.tokens_out, reply.finish_reason) == ("m-0613", 20, "stop")
    assert reply.logprobs and {"safe", "unsafe"} <= set(reply.logprobs[-3][1] or {})
    kept = [others for _, others in reply.logprobs if others]
    assert len(kept) == 1  # alternatives only where a label may begin


@pytest.mark.parametrize("header, least", [("retry-after-ms", "300"), ("retry-after", "0.3")])
def test_the_server_says_when_to_come_back(header, least):
    """Everyone waits, not only the one that was told."""
    script = [(429, {header: least}, SLOW_DOWN)]
    with ChatStub(script=script) as stub:
        client = backend(stub.url, concurrency=1)
        start = time.monotonic()
        replies = client.complete([request(), request(1)])
        assert time.monotonic() - start >= 0.3
        assert all(reply.error is None for reply in replies) and stub.calls == 3


def test_one_budget_for_all_causes():
    """Two retries are two, whether for a status, a cut answer or an unreadable one."""
    failures = [(500, {}, {}), (200, {}, "no completion")]
    with ChatStub(script=failures) as stub:
        client = backend(stub.url)
        (reply,) = client.complete([request(accepts=lambda reply: False)])
        assert reply.error is None and stub.calls == 3
    with ChatStub(script=[*failures, (503, {}, {})]) as stub:
        (reply,) = backend(stub.url).complete([request()])
        assert reply.error == "HTTP 503 (tried 3 times)" and stub.calls == 3


@pytest.mark.parametrize("count", [10**400, -1, float("inf"), "many"])
def test_a_count_that_is_no_count_is_no_answer(count):
    """What costs are computed of; a wild one must not end the stage, or be summed."""
    said = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": count}}
    with ChatStub(script=[(200, {}, said)]) as stub:
        (reply,) = backend(stub.url).complete([request()])
        assert reply.error is None and stub.calls == 2 and 0 < reply.tokens_in < 10**4


@pytest.mark.parametrize(
    "unknown",
    [("response_format",), ("logprobs",), ("temperature", "seed"), ("max_completion_tokens",)],
)
def test_a_field_that_the_server_does_not_know_is_left_out(unknown):
    """For the rest of the stage, and it is recorded; the limit of tokens goes by its older name.
    Retries are not spent on it.
    """
    with ChatStub(unknown=unknown) as stub:
        client = backend(stub.url, retries=0, concurrency=1)
        replies = client.complete([request(i, labels=("safe",)) for i in range(3)])
        assert all(reply.error is None for reply in replies)
        assert stub.calls == 3 + len(unknown)
        assert replies[2].dropped == tuple(sorted(unknown))
        last = stub.bodies[-1]
        assert not set(unknown) & set(last)
        assert ("max_tokens" in last) == ("max_completion_tokens" in unknown)


def test_a_text_that_speaks_of_a_field_takes_nothing_away():
    """A server that quotes the question in its complaint, or finds the prompt too long."""
    said = [
        "Invalid content: at what temperature does it seed, with logprobs_x?",
        "'max_completion_tokens' is too large for this model's context length",
    ]
    for message in said:
        with ChatStub(script=[(400, {}, {"error": {"message": message}})]) as stub:
            client = backend(stub.url, concurrency=1)
            bad, good = client.complete([request(), request(1)])
            assert bad.error and bad.error.startswith("HTTP 400: ") and good.error is None
            assert good.dropped == ()


def test_a_schema_that_must_be_taken():
    with ChatStub(unknown=("response_format",)) as stub:
        with pytest.raises(UserError, match="takes no JSON schema.*judge.structured=auto"):
            backend(stub.url, strict_schema=True).complete([request()])


@pytest.mark.parametrize(
    "status, body, said",
    [
        (401, {"error": {"message": "wrong key sk-very-secret"}}, "does not take the key"),
        (403, {"error": {"message": "not sk-very-secret"}}, "refuses: HTTP 403: not [key]"),
        (404, {"error": {"message": "no model m"}}, "no model m: look at judge.base_url"),
        (429, {"error": {"message": "x", "code": "insufficient_quota"}}, "no quota left"),
        (307, {}, "leads elsewhere"),
    ],
)
def test_what_ends_the_stage(monkeypatch, status, body, said):
    """At once, on one line, without the key; what was answered before was handed over."""
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    headers = {"location": "http://127.0.0.1:9/v1"} if status == 307 else {}
    with ChatStub(script=[(500, {}, {}), (status, headers, body)]) as stub:
        client = backend(stub.url, api_key_env="A_KEY", concurrency=1, retries=0)
        came = []
        with pytest.raises(UserError) as caught:
            client.complete([request(i) for i in range(20)], lambda i, reply: came.append(i))
        assert came == [0] and stub.calls == 2
        assert stub.headers[0]["authorization"] == "Bearer sk-very-secret"
    line = str(caught.value)
    assert said in line and "\n" not in line and "secret" not in line


def test_a_key_that_is_named_must_be_there(monkeypatch):
    """And OpenAI's is not sent to anyone else."""
    monkeypatch.delenv("A_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with pytest.raises(
        UserError, match="the environment variable A_KEY holds no key for 127.0.0.1"
    ):
        backend("http://127.0.0.1:9/v1", api_key_env="A_KEY").complete([request()])
    with ChatStub() as stub:
        backend(stub.url).complete([request()])
        assert "secret" not in json.dumps(stub.headers)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    """Else pictures for a local judge would go to it."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with ChatStub() as stub:
        (reply,) = backend(stub.url).complete([request()])
        assert reply.error is None and stub.calls == 1


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'srpo_jax\[judge\]'"):
        backend("http://127.0.0.1:9/v1").complete([request()])


def test_as_many_at_once_as_allowed():
    """No more, and the time that follows from it; replies are in the order of their requests, and
    each is handed over when it comes. Closed, it can be used again.
    """
    with ChatStub(latency=0.1) as stub:
        client = backend(stub.url, concurrency=8)
        came = {}
        replies = client.complete([request(i) for i in range(40)], came.__setitem__)
        assert stub.peak == 8 and [came[i] for i in range(40)] == replies
        client.close()
        assert client.complete([request()])[0].error is None


def test_hosts():
    """What is this machine, by its name alone; and what is no address."""
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert not any(map(is_loopback, ("10.0.0.1", "localhost.evil.example", "0.0.0.0", "judge")))
    assert host_of("http://[::1]:80/v1") == "::1"
    for url in ("", "file:///x", "http://", "127.0.0.1:8000", "http://h:port/v1", "http://[x/v1"):
        with pytest.raises(UserError, match="is no address"):
            host_of(url)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
    ],
)
def test_what_is_no_completion(content):
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        read_completion(content, ())
