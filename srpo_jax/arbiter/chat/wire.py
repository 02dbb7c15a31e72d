"""What a chat request and its answer are on the wire, in the form of the OpenAI chat API: the same
whether a server is asked or a batch file is written.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Sequence
from typing import Any

from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest, Picture, Token

TOP_LOGPROBS = 10
MOST_TOKENS = 10**12  # of one answer; what claims more is no answer
TOKEN_NAMES = ("max_completion_tokens", "max_tokens")  # today's name and the one before
OPTIONAL = ("response_format", "top_logprobs", "logprobs", "temperature", "seed", *TOKEN_NAMES)


def token_names(first: str) -> list[str]:
    """The names of the limit of tokens in the order in which they are tried."""
    return sorted(TOKEN_NAMES, key=lambda name: name != first)


def request_body(
    request: ChatRequest, token_names: Sequence[str], refused: Collection[str] = ()
) -> dict[str, Any]:
    """The body of the call. token_names: what the server may call the limit, the first that is not
    refused is sent. refused: fields of OPTIONAL that the server does not take.

    Errors: RecordError or ValueError for a picture that cannot be sent.
    """
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": m.role, "content": _content(m.parts)} for m in request.messages],
        "temperature": request.temperature,
        "seed": request.seed,
    }
    limits = [name for name in token_names if name not in refused]
    if limits:
        body[limits[0]] = request.max_tokens
    if request.labels and "logprobs" not in refused:
        body.update(logprobs=True, top_logprobs=TOP_LOGPROBS)
    if request.schema is not None:
        schema = {"name": "verdict", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if name not in refused}


def _content(parts: Sequence[str | Picture]) -> str | list[dict[str, Any]]:
    if all(isinstance(part, str) for part in parts):
        return "\n".join(str(part) for part in parts)
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            data, mime = part.sent()
            url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    return content


def read_completion(content: bytes, labels: Sequence[str]) -> ChatReply:
    """The reply in the body of an answer. labels: at which tokens alternatives are kept.

    Errors: ValueError, TypeError, LookupError or AttributeError when it holds no completion.
    """
    return reply_of(json.loads(content), labels)


def reply_of(data: Any, labels: Sequence[str]) -> ChatReply:
    """The same, of a body that is parsed already."""
    choice = data["choices"][0]
    message, usage = choice["message"], data.get("usage") or {}
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise TypeError("the content is no text")
    if text is None and refusal is None and choice.get("finish_reason") in (None, "stop"):
        raise ValueError("the content is missing")
    told = (choice.get("logprobs") or {}).get("content")
    return ChatReply(
        text=text,
        refusal=refusal or None,
        finish_reason=choice.get("finish_reason"),
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        logprobs=tuple(_token(item, labels) for item in told) if told and labels else None,
        model=str(data.get("model") or ""),
    )


def _count(value: Any) -> int:
    try:
        count = int(value or 0)
    except OverflowError:  # JSON has no infinity, but Python reads one
        count = -1
    if not 0 <= count < MOST_TOKENS:  # what it costs is computed of it, and summed
        raise ValueError("the count of tokens is no number")
    return count


def _token(item: dict[str, Any], labels: Sequence[str]) -> Token:
    others = {o["token"]: float(o["logprob"]) for o in item.get("top_logprobs") or ()}
    starts = [text.strip(' "\n') for text in others]
    wanted = any(
        s and (label.startswith(s) or s.startswith(label)) for s in starts for label in labels
    )
    return item["token"], others if wanted else None
