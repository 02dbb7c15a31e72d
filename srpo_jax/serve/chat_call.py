"""What is asked: the body of a chat completion request, read and checked, before any model sees it.

The fields are those of the OpenAI chat API. What would change the answer and cannot be had is
refused by name; what says nothing about the answer (OF_NO_ACCOUNT) may be there.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from srpo_jax.data_pipelines.records import IMAGE_MARKER
from srpo_jax.serve.errors import ApiError

MOST_CHOICES = 64
MOST_STOPS = 16
OF_NO_ACCOUNT = (
    *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "store", "user"),
)
# Fields that say nothing when they have this value, and cannot be had with another.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
KNOWN = (
    *("model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "n"),
    *("seed", "stop", "stream", "stream_options"),
)
DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """A message. role: system, user or assistant. text: with IMAGE_MARKER where pictures stand, or
    none of them when all stand in front; pictures: the bytes of their files."""

    role: str
    text: str
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class ChatCall:
    """A request. turns: the last one is the user's. max_tokens: 0 for as many as there is room for.
    seed: None to be drawn. stream: whether the answer is sent as events. usage: with one more that
    has the tokens, and no choice, which readers that do not ask for it do not expect."""

    model: str
    turns: tuple[Turn, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False


def read_call(body: bytes) -> ChatCall:
    """Errors: ApiError (400) that names the field."""
    data = _object(body)
    for name, value in data.items():
        if value is None or name in KNOWN or name in OF_NO_ACCOUNT:
            continue
        if name not in NEUTRAL:
            raise _refused(name, f"unsupported parameter {name!r}: it is not known here")
        if value not in NEUTRAL[name] or isinstance(value, bool) != isinstance(
            NEUTRAL[name][0], bool
        ):
            raise _refused(name, f"unsupported parameter {name!r}: leave it out")
    data = {name: value for name, value in data.items() if value is not None}
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in data]
    limits = {_whole(data, name, 1, 1, 2**31 - 1) for name in names}
    if len(limits) > 1:
        raise _wrong("max_tokens", "max_tokens and max_completion_tokens differ")
    return ChatCall(
        model=_text(data, "model"),
        turns=_turns(data.get("messages")),
        temperature=_number(data, "temperature", 1.0, 0, 2),
        top_p=_number(data, "top_p", 1.0, 1e-6, 1),
        max_tokens=limits.pop() if limits else 0,
        n=_whole(data, "n", 1, 1, MOST_CHOICES),
        seed=_whole(data, "seed", 0, -(2**63), 2**63 - 1) if "seed" in data else None,
        stop=_stops(data.get("stop", ())),
        stream=_flag(data, "stream"),
        usage=_usage(data.get("stream_options", {})),
    )


def _usage(options: Any) -> bool:
    if not isinstance(options, dict):
        raise _wrong("stream_options", "stream_options must be an object")
    return _flag(options, "include_usage")


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is no JSON: {why}") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body is no JSON object")
    return data


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, message, code="unsupported_parameter", param=param)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise _wrong(name, f"{name} must be a string")
    return value


def _flag(data: dict[str, Any], name: str) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, f"{name} must be true or false")
    return value


def _number(data: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _wrong(name, f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(data: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"{name} must be a whole number from {low} to {high}")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise _wrong("stop", "stop must be a string or a list of strings")
    if len(texts) > MOST_STOPS or not all(texts):
        raise _wrong("stop", f"stop takes up to {MOST_STOPS} texts, none of them empty")
    return tuple(texts)


def _turns(messages: Any) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages must be a list with a message in it")
    turns = tuple(_turn(message, f"messages[{i}]") for i, message in enumerate(messages))
    talk = turns[1:] if turns[0].role == "system" else turns
    for i, turn in enumerate(talk):
        if turn.role != ("user", "assistant")[i % 2]:
            raise _wrong(
                "messages",
                "messages must be of user and assistant in turn, with a system message in front at "
                "most",
            )
    if len(talk) % 2 == 0:
        raise _wrong("messages", "the last message must be the user's")
    return turns


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise _wrong(where, f"{where} must be an object")
    role = message.get("role")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise _wrong(f"{where}.role", f"{where}.role must be system, user or assistant")
    if message.get("tool_calls"):
        raise _refused(f"{where}.tool_calls", "calls of tools cannot be had here")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", f"{where}.content must be a string or a list of parts")
    parts = [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    texts = [part for part in parts if isinstance(part, str)]
    pictures = tuple(part for part in parts if isinstance(part, bytes))
    if pictures and role != "user":
        raise _wrong(where, f"{where}: only the user shows pictures")
    if not "".join(texts).strip() and not (pictures and role == "user"):
        raise _wrong(f"{where}.content", f"{where}.content says nothing")
    if all(isinstance(part, bytes) for part in parts[: len(pictures)]):
        return Turn(role, "".join(texts), pictures)  # all in front
    if any(IMAGE_MARKER in text for text in texts):
        raise _wrong(
            f"{where}.content",
            f"{where}.content says {IMAGE_MARKER} and has pictures between its texts; put the "
            "pictures in front, or leave the word out",
        )
    shown = (IMAGE_MARKER if isinstance(part, bytes) else part for part in parts)
    return Turn(role, "".join(shown), pictures)


def _part(part: Any, where: str) -> str | bytes:
    """A text, or the bytes of a picture."""
    part = part if isinstance(part, dict) else {}
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if part.get("type") != "image_url":
        raise _refused(where, f"{where} is neither a text nor an image_url")
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str) or not (found := DATA_URI.match(url)):
        raise _wrong(
            where,
            f"{where}: pictures are taken as data:image/...;base64 alone, nothing is fetched",
        )
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(where, f"{where}: the picture is not base64") from None
