"""What a request may say, and what is refused, by the name of its field."""

import base64
import json

import pytest

from srpo_jax.serve.chat_call import ChatCall, Turn, read_call
from srpo_jax.serve.errors import ApiError

PIXELS = b"not a picture, but nobody has looked yet"
URL = f"data:image/png;base64,{base64.b64encode(PIXELS).decode()}"
PICTURE = {"type": "image_url", "image_url": {"url": URL, "detail": "high"}}


def text(said):
    return {"type": "text", "text": said}


def body(content="Why?", **fields):
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def turn(*parts):
    return read_call(body(list(parts))).turns[0]


def test_a_whole_request():
    """Every field that is known, with the defaults of the API; null is as if left out, and fields
    that say nothing of the answer may be there."""
    asked = read_call(body())
    assert asked == ChatCall("m", (Turn("user", "Why?"),))
    assert (asked.temperature, asked.top_p, asked.n, asked.seed) == (1, 1, 1, None)
    fields = dict(temperature=0, top_p=0.5, max_tokens=7, n=3, seed=-1, stop="\n", stream=True)
    neutral = dict(user="me", presence_penalty=0.0, tools=[], logprobs=False, logit_bias=None)
    found = read_call(body(**fields, **neutral))
    expected = dict(fields, stop=("\n",), temperature=0.0)
    assert {name: getattr(found, name) for name in fields} == expected
    assert read_call(body(max_completion_tokens=7)).max_tokens == 7
    talk = [("developer", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    messages = [{"role": role, "content": said} for role, said in talk]
    turns = read_call(json.dumps({"model": "m", "messages": messages}).encode()).turns
    assert [t.role for t in turns] == ["system", "user", "assistant", "user"]


def test_pictures_stand_where_they_stood():
    """In front of all texts, or between them by the marker that records have; then no text may
    have one itself."""
    assert turn(PICTURE, text("a"), text("b")) == Turn("user", "ab", (PIXELS,))
    assert turn(PICTURE, text("What is <image>?")).text == "What is <image>?"
    found = turn(text("Compare "), PICTURE, text(" with "), PICTURE)
    assert found == Turn("user", "Compare <image> with <image>", (PIXELS, PIXELS))
    assert turn(PICTURE).pictures == (PIXELS,)
    with pytest.raises(ApiError, match="pictures between its texts"):
        turn(text("an <image> and "), PICTURE)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (dict(model=3), "model"),
        (dict(temperature=-0.1), "temperature"),
        (dict(temperature=True), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(max_tokens=5, max_completion_tokens=6), "max_tokens"),
        (dict(n=0), "n"),
        (dict(n=65), "n"),
        (dict(seed=1.5), "seed"),
        (dict(stop=[""]), "stop"),
        (dict(stop=[1]), "stop"),
        (dict(stream="yes"), "stream"),
        (dict(stream_options="usage"), "stream_options"),
        (dict(stream_options={"include_usage": 1}), "include_usage"),
        (dict(logprobs=True), "logprobs"),
        (dict(logprobs=0), "logprobs"),
        (dict(top_logprobs=5), "top_logprobs"),
        (dict(presence_penalty=0.5), "presence_penalty"),
        (dict(response_format={"type": "json_schema"}), "response_format"),
        (dict(tools=[{"type": "function"}]), "tools"),
        (dict(best_of=2), "best_of"),
        (dict(messages=[]), "messages"),
        (dict(messages="Why?"), "messages"),
        (dict(messages=[{"role": "assistant", "content": "So."}]), "messages"),
        (dict(messages=[{"role": "tool", "content": "So."}]), "messages[0].role"),
        (dict(messages=[{"role": "user"}]), "messages[0].content"),
        (dict(messages=[{"role": "user", "content": " "}]), "messages[0].content"),
        (dict(messages=[{"role": "system", "content": [PICTURE]}]), "messages[0]"),
    ],
)
def test_what_cannot_be_had_is_named(fields, param):
    """A field that would change the answer is never passed over."""
    with pytest.raises(ApiError) as error:
        read_call(body(**fields))
    assert (error.value.status, error.value.param) == (400, param)
    assert error.value.body()["error"]["type"] == "invalid_request_error"


def test_nothing_is_fetched():
    """Pictures are what the request holds: no address of another machine, no file of this one."""
    for url in ("https://example.org/a.png", "file:///etc/passwd", "/etc/passwd", "data:,x", None):
        with pytest.raises(ApiError, match="nothing is fetched"):
            turn({"type": "image_url", "image_url": {"url": url}})
    with pytest.raises(ApiError, match="not base64"):
        turn({"type": "image_url", "image_url": {"url": "data:image/png;base64,a b"}})
    with pytest.raises(ApiError, match="neither a text nor an image_url"):
        turn({"type": "input_audio", "input_audio": {}})


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b"\xff", b"[" * 100_000], ids=range(5))
def test_what_is_no_json_object_is_told(said):
    """Whatever it is."""
    with pytest.raises(ApiError, match="no JSON") as error:
        read_call(said)
    assert error.value.status == 400
