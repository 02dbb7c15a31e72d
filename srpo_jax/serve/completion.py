"""What is answered: samples of a policy as chat completions, whole or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srpo_jax.inference.engine.requests import Sample
from srpo_jax.inference.policy import Policy
from srpo_jax.serve.chat_call import ChatCall


@dataclass(frozen=True)
class Choice:
    """An answer. text: what is sent as content; path: of one that is sent without it, else "".
    finish_reason: stop or length. status: how the answer could be read (path_formats/statuses.py).
    """

    text: str
    path: str
    finish_reason: str
    status: str
    tokens: int


def whole_choice(policy: Policy, call: ChatCall, sample: Sample) -> Choice:
    """Path and reply as the policy wrote them, up to a stop text of the request."""
    said = policy.processor.decode(sample.tokens.tolist())
    status = policy.read_turn((), said, finished=sample.finished)[2]
    text = cut_at(said, call.stop)
    reason = "stop" if sample.finished else "length"
    return Choice(text, "", reason, status, len(sample.tokens))


def reply_choice(policy: Policy, call: ChatCall, sample: Sample) -> Choice:
    """The reply alone. The request's stop texts and limit of tokens count for it and not for the
    path. Where no reply can be read, it is empty."""
    said = policy.processor.decode(sample.tokens.tolist())
    steps, reply, status = policy.read_turn((), said, finished=sample.finished)
    text = cut_at(reply or "", call.stop)
    reason = "stop" if sample.finished else "length"
    if call.max_tokens:
        tokens = policy.processor.encode(text, after_text=True)
        if len(tokens) > call.max_tokens:
            text = policy.processor.decode(tokens[: call.max_tokens], after_text=True)
            reason = "length"
    path = "\n".join(steps)
    return Choice(text, path, reason, status, len(sample.tokens))


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first stop text."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def completion(
    call: ChatCall, choices: Sequence[Choice], prompt_tokens: int, fingerprint: str
) -> dict[str, Any]:
    """The body of an answer. fingerprint: of the policy and of how it is asked."""
    written = sum(choice.tokens for choice in choices)
    return {
        **_head("chat.completion", call, fingerprint),
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", **_said(choice), "refusal": None},
                "finish_reason": choice.finish_reason,
                "logprobs": None,
                "srpo_status": choice.status,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        },
    }


def events(body: dict[str, Any], *, with_usage: bool) -> bytes:
    """The same answer as server-sent events: each choice in one piece, as it is known by then;
    with_usage: and then one without a choice that has the tokens.
    """
    head = {**body, "object": "chat.completion.chunk"}
    usage = head.pop("usage")
    chunks = []
    for choice in head["choices"]:
        said = {name: value for name, value in choice["message"].items() if value is not None}
        ends = {**choice, "delta": {}}
        del ends["message"]
        chunks += [{**ends, "delta": said, "finish_reason": None}, ends]
    lines = [{**head, "choices": [chunk]} for chunk in chunks]
    if with_usage:
        lines.append({**head, "choices": [], "usage": usage})
    text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
    return f"{text}data: [DONE]\n\n".encode()


def _said(choice: Choice) -> dict[str, Any]:
    path = {"reasoning_content": choice.path} if choice.path else {}
    return {"content": choice.text, **path}


def _head(kind: str, call: ChatCall, fingerprint: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": call.model,
        "system_fingerprint": fingerprint,
    }
