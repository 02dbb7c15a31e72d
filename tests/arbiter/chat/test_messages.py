"""Requests and replies: what makes two requests the same, and what a picture becomes."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from PIL import Image

from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest, Message, Picture, mime_type


def encoded(size: tuple[int, int], kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(out, kind)
    return out.getvalue()


def test_the_key_is_of_all_that_decides():
    """Another value of any field is another request; whether its answer is liked is not asked."""
    picture = Picture(encoded((4, 4), "PNG"))
    base = ChatRequest("m", (Message("user", (picture, "text")),), 0.5, 9, 7, {"a": 1}, ("safe",))
    others = [
        {"model": "n"},
        {"temperature": 0.6},
        {"max_tokens": 10},
        {"seed": 8},
        {"schema": None},
        {"labels": ()},
        {"messages": (Message("system", (picture, "text")),)},
        {"messages": (Message("user", ("text", picture)),)},
        {"messages": (Message("user", (picture, "texts")),)},
        {"messages": (Message("user", (Picture(picture.data, 2), "text")),)},
        {"messages": (Message("user", (Picture(picture.data + b"0"), "text")),)},
    ]
    keys = {base.key, *(dataclasses.replace(base, **other).key for other in others)}
    assert len(keys) == 1 + len(others)
    assert {name for other in others for name in other} | {"accepts"} == {
        field.name for field in dataclasses.fields(base)
    }
    again = dataclasses.replace(base, accepts=lambda reply: True)
    assert again.key == base.key and again.pictures() == [picture] and again.text() == "text"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_sent_as_it_is_or_shrunk(kind):
    """As it is: the very bytes. Shrunk: an upright PNG of that side in the same proportions; a
    picture that is small enough keeps its size.
    """
    data = encoded((40, 20), kind)
    assert Picture(data).sent() == (data, f"image/{kind.lower()}")
    for side, size in [(10, (10, 5)), (100, (40, 20))]:
        sent, mime = Picture(data, side).sent()
        assert mime == mime_type(sent) == "image/png"
        assert Image.open(io.BytesIO(sent)).size == size
    assert Picture(data, 10).sha256 == Picture(data).sha256
    with pytest.raises(ValueError, match="neither PNG nor JPEG nor WEBP"):
        mime_type(b"GIF89a")


def test_a_reply_survives_json():
    reply = ChatReply("t", "r", "stop", 3, 4, (("a", {"a": -0.5}), ("b", None)), "m", ("seed",))
    for one in (reply, ChatReply(error="HTTP 500")):
        assert ChatReply.from_dict(json.loads(json.dumps(one.to_dict()))) == one
