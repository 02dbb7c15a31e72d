"""What a chat model is asked and what comes back, whoever answers; and what a back end must do."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from srpo_jax.data_pipelines.images import load_image

# How a picture file of each kind begins.
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


@dataclass(frozen=True)
class Picture:
    """A picture file as it is on disk. max_side: it is sent shrunk to so many pixels; 0: as it is,
    with whatever else is in the file.
    """

    data: bytes = field(repr=False)
    max_side: int = 0

    @cached_property
    def sha256(self) -> str:
        """Of the file, not of what is sent: another release of Pillow must not lose replies."""
        return hashlib.sha256(self.data).hexdigest()

    def sent(self) -> tuple[bytes, str]:
        """(bytes, mime type) for the wire. Shrunk pictures are upright PNGs without metadata.

        Errors: RecordError for a picture that cannot be read, ValueError for an unknown kind.
        """
        if not self.max_side:
            return self.data, mime_type(self.data)
        image = load_image(self.data, what="picture of a case")
        image.thumbnail((self.max_side, self.max_side))
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue(), "image/png"


def mime_type(data: bytes) -> str:
    """image/png, image/jpeg or image/webp, by the first bytes. Errors: ValueError."""
    for start, mime in _MAGIC:
        if data.startswith(start):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError("the picture is neither PNG nor JPEG nor WEBP")


@dataclass(frozen=True)
class Message:
    """role: system, user or assistant. parts: texts and pictures in their order."""

    role: str
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat model.

    schema: JSON schema of the answer, or None for free text. labels: words whose log-probabilities
    are wanted, or () for none. accepts: False for a reply that is worth asking once more, such as
    an unreadable one; it is not part of what is asked.
    """

    model: str
    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    seed: int
    schema: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()
    accepts: Callable[[ChatReply], bool] | None = field(default=None, compare=False, repr=False)

    def pictures(self) -> list[Picture]:
        """All pictures, in order; one that is shown twice is there twice."""
        return [part for m in self.messages for part in m.parts if isinstance(part, Picture)]

    def text(self) -> str:
        """All text parts, with line ends between."""
        parts = [part for m in self.messages for part in m.parts if isinstance(part, str)]
        return "\n".join(parts)

    @cached_property
    def key(self) -> str:
        """SHA-256, in hex, of all that decides the answer: pictures by the digest of their file.
        No address of a server and no key of an account are in it.
        """

        def plain(part: str | Picture) -> Any:
            if isinstance(part, str):
                return part
            return {"picture": part.sha256, "max_side": part.max_side}

        content = {
            "model": self.model,
            "messages": [[m.role, [plain(part) for part in m.parts]] for m in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "schema": self.schema,
            "labels": self.labels,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# A token of the answer; beside it its alternatives with their log-probabilities where one of them
# begins a wanted label, else None.
Token = tuple[str, dict[str, float] | None]


@dataclass(frozen=True)
class ChatReply:
    """What came back. error: why there is no answer at all; then everything else is empty.

    finish_reason: stop, length (cut), content_filter, or what the server says. model: what the
    server says answered. dropped: fields of the request that the server did not take, so that it
    was asked without them.
    """

    text: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    logprobs: tuple[Token, ...] | None = None
    model: str = ""
    dropped: tuple[str, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; from_dict gives the same reply back."""
        return {
            "text": self.text,
            "refusal": self.refusal,
            "finish_reason": self.finish_reason,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "logprobs": None if self.logprobs is None else [list(t) for t in self.logprobs],
            "model": self.model,
            "dropped": list(self.dropped),
            "error": self.error,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ChatReply:
        """Of what to_dict gave. Errors: TypeError for anything else."""
        logprobs = data.get("logprobs")
        tokens = None if logprobs is None else tuple((t, a) for t, a in logprobs)
        fields = {**data, "logprobs": tokens, "dropped": tuple(data.get("dropped") or ())}
        return ChatReply(**fields)


class ChatBackend(Protocol):
    """Whatever answers requests. `host`: of the machine that they go to, for messages. One that
    is for several judges may have `serving(settings)`: the one for the judge with these settings.
    """

    host: str

    def complete(
        self,
        requests: Sequence[ChatRequest],
        on_reply: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """One reply a request, in order; one without an answer has an `error`.

        on_reply(i, reply) is called as soon as the answer to requests[i] is there, from any thread
        but never from two at once. Errors: UserError or RunFailure when asking on makes no sense
        (a wrong key, no such model, no server).
        """
        ...
