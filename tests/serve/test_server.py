"""The endpoint over a tiny policy, asked by the openai package, by our own chat back end, and by
hand; everything on 127.0.0.1."""

import base64
import dataclasses
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from srpo_jax.arbiter.chat.messages import ChatRequest, Message, Picture
from srpo_jax.arbiter.chat.openai_api import OpenAIChat
from srpo_jax.cli.ask import ask
from srpo_jax.config.convert import as_config
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.tree_store import read_shard
from srpo_jax.errors import UserError
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.inference.engine.requests import Sample
from srpo_jax.inference.policy import load_policy
from srpo_jax.serve import server as http_side
from srpo_jax.serve import service as service_module
from srpo_jax.serve.chat_call import ChatCall, Turn, read_call
from srpo_jax.serve.completion import reply_choice, whole_choice
from srpo_jax.serve.errors import ApiError
from srpo_jax.serve.server import check_address, listening
from srpo_jax.serve.service import Service
from tests.support.small_world import write_world

NEW = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    found = write_world(tmp_path_factory.mktemp("world"))
    found.eval.batch, found.eval.max_new_tokens = 3, NEW
    found.serve.prompt_tokens = 400
    return as_config(found)


@pytest.fixture(scope="module")
def policy(config):
    return load_policy(config)


@pytest.fixture(scope="module")
def service(config, policy):
    found = Service(config, policy, "tiny")
    found.start()
    yield found
    found.close(ApiError(503, "the server ends"))
    assert found.wait(20) and found.failure is None


@pytest.fixture(scope="module")
def url(service):
    with listening("127.0.0.1", 0) as server:
        server.service = service
        yield server.url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def records(config):
    return read_records(config.data.test_records)


def asked(record):
    """Its pictures and question as a message's content."""
    files = [path.read_bytes() for path in record.image_paths()]
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in files]
    pictures = [{"type": "image_url", "image_url": {"url": each}} for each in urls]
    return [*pictures, {"type": "text", "text": record.question}]


def chat_body(content):
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "tiny", "messages": messages}).encode()


def create(client, content, **fields):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="tiny", messages=messages, **fields)


def texts(found):
    return [choice.message.content for choice in found.choices]


def test_the_answer_is_that_of_ask_and_of_eval(client, service, config, records, tmp_path):
    """The same prompt around the same question, with a picture, and so the same text."""
    folder = evaluate(config, tmp_path, "x")
    greedy = [tree["branches"][0] for s in read_answers(folder)[1] for tree in read_shard(s)]
    for record, branch in zip(records, greedy, strict=True):
        found = create(client, asked(record), temperature=0)
        assert texts(found) == [branch["text"]]
        (choice,) = found.choices
        assert choice.finish_reason == ("stop" if branch["finished"] else "length")
        assert found.usage.completion_tokens == len(branch["tokens"])
        call = read_call(chat_body(asked(record)))
        prompt, ours = service._encode(call), service._policy.encode(record)
        assert prompt.tokens.tolist() == ours.tokens.tolist()
        assert np.array_equal(prompt.patches, ours.patches)
    (answer,) = ask(config, config.model.path, records[1], NEW)
    assert texts(create(client, asked(records[1]), temperature=0)) == [answer.text]


def test_what_else_is_asked_changes_nothing(client, records):
    """More requests at once than rows, of all kinds and lengths: each has the text that it has
    alone. The same seed gives the same choices; they differ from each other."""
    kinds = [
        dict(temperature=0),
        dict(temperature=2, seed=1, n=3),
        dict(temperature=2, top_p=0.5, seed=2),
        dict(temperature=0.7, seed=3, max_tokens=3),
        dict(temperature=2, seed=4, stop=["e", "a"], n=2),
    ]
    calls = [(kinds[i % 5], asked(records[i % 3]) if i % 2 else "What is it?") for i in range(15)]

    def one(call):
        fields, content = call
        return create(client, content, **fields)

    alone = [one(call) for call in calls]
    with ThreadPoolExecutor(15) as pool:
        together = list(pool.map(one, calls))
    for (fields, _), before, now in zip(calls, alone, together, strict=True):
        assert texts(now) == texts(before) and len(now.choices) == fields.get("n", 1)
        most = fields.get("max_tokens", NEW) * len(now.choices)
        assert now.usage.completion_tokens <= most
        assert not any(stop in text for stop in fields.get("stop", ()) for text in texts(now))
    assert len(set(texts(alone[1]))) == 3
    other = one((dict(kinds[1], seed=9), calls[1][1]))
    assert texts(other) != texts(alone[1])


def test_a_conversation(client):
    """A system message and earlier turns are part of what is asked."""
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A kitchen."},
        {"role": "user", "content": "Why?"},
    ]
    said = {
        texts(client.chat.completions.create(model="tiny", messages=part, temperature=2, seed=1))[0]
        for part in (talk, talk[1:], talk[3:])
    }
    assert len(said) == 3


def test_an_answer_comes_as_events_too(client):
    """Those of the API, with the same text in all; one without a choice, which has the tokens,
    comes only to who asks for it.
    """
    fields = dict(temperature=2, seed=5, n=2)
    whole = create(client, "What is it?", **fields)
    pieces = {0: "", 1: ""}
    chunks = list(create(client, "What is it?", stream=True, **fields))
    for chunk in chunks:
        (choice,) = chunk.choices
        pieces[choice.index] += choice.delta.content or ""
    assert list(pieces.values()) == texts(whole)
    asked = {"stream_options": {"include_usage": True}}
    chunks = list(create(client, "What is it?", stream=True, **fields, **asked))
    assert [len(chunk.choices) for chunk in chunks] == [1, 1, 1, 1, 0]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_our_own_back_end_asks_it(url, records):
    """What judges ask with: a picture behind a text, and fields that are dropped when refused."""
    picture = Picture(records[0].image_paths()[0].read_bytes())
    messages = (Message("system", ("Sort.",)), Message("user", ("This ", picture, " is?")))
    schema = {"type": "object", "properties": {}}
    backend = OpenAIChat(url, retries=0)
    try:
        (reply,) = backend.complete(
            [ChatRequest("tiny", messages, 0.0, 5, 1, schema=schema, labels=("safe",))]
        )
    finally:
        backend.close()
    assert reply.error is None and reply.text and 0 < reply.tokens_out <= 5
    assert set(reply.dropped) == {"response_format", "logprobs"}


def test_what_has_no_answer_is_an_error_of_the_api(client, records):
    """With the status that clients know; the message says what there is room for."""
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "srpo_jax"
    with pytest.raises(openai.NotFoundError, match="no model 'other'; this is 'tiny'"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": "Why?"}]
        )
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="room for 400 tokens") as error:
        create(client, "What is it? " * 100)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="larger eval.max_new_tokens"):
        create(client, "Why?", max_tokens=NEW + 1)
    for data, why in ((b"no picture", "not a JPEG, PNG, WEBP"), (b"\x89PNG\r\n\x1a\n", "image")):
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        with pytest.raises(openai.BadRequestError, match=why):
            create(client, [{"type": "image_url", "image_url": {"url": url}}])
    with pytest.raises(openai.BadRequestError, match="1 <image> markers and 2 pictures"):
        picture = asked(records[0])[0]
        create(client, [picture, picture, {"type": "text", "text": "Is <image> it?"}])


def test_what_is_no_request_of_the_api(url, monkeypatch):
    """Wrong paths, types and sizes, each with its status, on a connection that is closed or goes
    on; a page of a browser that found its way here is refused."""
    monkeypatch.setattr(http_side, "MAX_BODY", 1000)
    host, port = url.split("/")[2].split(":")
    json_type = {"Content-Type": "application/json"}

    def call(method, path, body=None, headers=json_type):
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    assert call("GET", "/health") == (200, {"status": "ok"})
    chat = "/v1/chat/completions"
    for status, *request in (
        (404, "GET", "/"),
        (404, "POST", "/v1/completions", b"{}"),
        (400, "POST", chat, b"{"),
        (413, "POST", chat, b"x" * 1001),
        (411, "POST", chat, None, {**json_type, "Transfer-Encoding": "chunked"}),
        (415, "POST", chat, b"{}", {"Content-Type": "text/plain"}),
        (403, "POST", chat, b"{}", {**json_type, "Host": "evil.example"}),
        (403, "GET", "/v1/models", None, {"Host": "evil.example"}),
    ):
        found, body = call(*request)
        assert found == status and body["error"]["message"], request


def test_whoever_waits_at_the_end_is_told(config, policy, monkeypatch):
    """503 for those without an answer and those that still come; 429 where too many wait."""
    monkeypatch.setattr(service_module, "MOST_WAITING", 2)
    service = Service(config, policy, "tiny")  # whose engine takes nothing
    call = ChatCall("tiny", (Turn("user", "Why?"),))
    failed = []

    def wait():
        with pytest.raises(ApiError) as error:
            service.answer(call)
        failed.append(error.value.status)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    while not service._waiting.full():
        pass
    with pytest.raises(ApiError) as error:
        service.answer(call)
    assert error.value.status == 429 and service.closed is None
    service.close(ApiError(503, "the server ends"))
    for thread in waiting:
        thread.join(20)
    assert failed == [503, 503]
    with pytest.raises(ApiError, match="the server ends"):
        service.answer(call)


def test_who_lost_patience_takes_no_row(config, policy, monkeypatch):
    """A request whose connection was closed is passed over when its turn comes."""
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.05)
    service = Service(config, policy, "tiny")  # whose engine takes nothing yet
    with listening("127.0.0.1", 0) as server:
        server.service = service
        one = http.client.HTTPConnection("127.0.0.1", server.server_port)
        body = chat_body("Why?")
        one.request("POST", http_side.CHAT, body, {"Content-Type": "application/json"})
        while not service._waiting.qsize():
            pass
        one.close()
        (job,) = service._open
        while service._open:
            pass
        assert not job.wanted
    service._waiting.put(None)  # the end
    assert list(service._requests({})) == []


def test_an_engine_that_fails_fails_who_asks(config, policy, monkeypatch):
    """With 500, and the server ends: nobody waits for ever."""
    service = Service(config, policy, "tiny")

    def broken(*_, **__):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(service._engine, "stream", broken)
    service._thread.start()
    with pytest.raises(ApiError) as error:
        service.answer(ChatCall("tiny", (Turn("user", "Why?"),)))
    assert error.value.status == 500 and service.closed
    assert service.wait(20) and str(service.failure) == "out of memory"


def test_a_reply_alone(policy):
    """The path is left out, its length does not count, and a stop text within it stops nothing; a
    turn without a reply is empty and says why."""

    def said(text, finished=True):
        ids = policy.processor.encode(text)
        return Sample(np.asarray(ids + [policy.processor.eos_ids[0]] * finished, np.int32), 0, True)

    sample = said("Look here.\nThink.\nReply: No. It is bleach.")
    call = ChatCall("m", (), stop=("\n",), max_tokens=500)
    found = reply_choice(policy, call, sample)
    assert (found.text, found.path) == ("No. It is bleach.", "Look here.\nThink.")
    assert (found.finish_reason, found.status) == ("stop", "ok")
    assert found.tokens == len(sample.tokens)
    assert whole_choice(policy, call, sample).text == "Look here."
    cut = reply_choice(policy, dataclasses.replace(call, max_tokens=2), sample)
    assert "No. It is bleach.".startswith(cut.text) and 0 < len(cut.text) < 17
    assert cut.finish_reason == "length"
    none = reply_choice(policy, call, said("Look here.\n"))
    assert (none.text, none.status) == ("", "no_reply")


def test_a_prompt_without_room_is_told_at_the_start(config, policy):
    """By the setting that has to grow; before anybody asks."""
    serve = dataclasses.replace(config.serve, prompt_tokens=1)
    service = Service(dataclasses.replace(config, serve=serve), policy, "tiny")
    with pytest.raises(UserError, match="serve.prompt_tokens: its prompt .* room for 16"):
        service.start()


def test_others_may_ask_only_where_the_user_says_so():
    """An address that other machines reach is refused, by name, before anything is loaded."""
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_address(host, 0, False)
    for host in ("0.0.0.0", "::", "", "192.168.0.1", "example.org"):
        with pytest.raises(UserError, match="--allow_remote"):
            check_address(host, 8000, False)
        check_address(host, 8000, True)
    with pytest.raises(UserError, match="--port=65536"):
        check_address("localhost", 65536, False)
    with listening("127.0.0.1", 0) as server:
        with pytest.raises(UserError, match="cannot listen there: .*in use"):
            with listening("127.0.0.1", server.server_port):
                pass
