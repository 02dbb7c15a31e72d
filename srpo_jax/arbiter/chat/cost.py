"""What asking costs: an estimate before, a count after.

The estimate is rough on purpose, for a decision and not for a bill: four characters of text are a
token, and a picture is a token for every 28 x 28 pixels of what is sent, as Qwen2.5-VL counts
(OpenAI counts fewer for large pictures, other models more).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest, Picture
from srpo_jax.data_pipelines.images import image_size
from srpo_jax.data_pipelines.records import RecordError

CHARACTERS_A_TOKEN = 4
PIXELS_A_TOKEN = 28 * 28
_MILLION = 1e6


@dataclass
class Usage:
    """How much was asked: requests answered by a server, tokens as it counted them, requests that
    the cache answered, requests without an answer, and dollars at the prices of who was asked.
    """

    answered: int = 0
    cached: int = 0
    unanswered: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0

    def add(self, reply: ChatReply, price_input: float = 0.0, price_output: float = 0.0) -> None:
        """Counts what a server said, or did not. Prices: dollars for a million tokens."""
        self.answered += reply.error is None
        self.unanswered += reply.error is not None
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        spent = reply.tokens_in * price_input + reply.tokens_out * price_output
        self.dollars += spent / _MILLION


def total_usage(usages: Iterable[Usage]) -> Usage:
    """All of them in one."""
    usages = list(usages)
    names = [field.name for field in dataclasses.fields(Usage)]
    return Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in names})


@dataclass(frozen=True)
class Preview:
    """What judging would send, and where: `requests` that the cache does not answer, with so many
    pictures in them (one that is shown twice counts twice) of so many bytes, and about so many
    tokens; tokens_out is what the limit allows. dollars: at most, at the prices of the config.
    note: what is not in the numbers.
    """

    host: str
    requests: int
    cached: int
    pictures: int
    picture_bytes: int
    tokens_in: int
    tokens_out: int
    dollars: float
    note: str = ""

    def __str__(self) -> str:
        """One line for people."""
        money = f", at most ${self.dollars:.2f}" if self.dollars else ""
        return (
            f"{self.requests} requests to {self.host} ({self.cached} more are in the cache) with"
            f" {self.pictures} pictures ({self.picture_bytes / 2**20:.1f} MiB), about"
            f" {self.tokens_in} tokens in, at most {self.tokens_out} out{money}"
            + (f" ({self.note})" if self.note else "")
        )


def total_preview(previews: Iterable[Preview], note: str = "") -> Preview:
    """Several, at least one, in one: all hosts, all counts."""
    previews = list(previews)
    summed = ("requests", "cached", "pictures", "picture_bytes", "tokens_in", "tokens_out")
    return Preview(
        host=", ".join(dict.fromkeys(preview.host for preview in previews)),
        **{name: sum(getattr(preview, name) for preview in previews) for name in summed},
        dollars=sum(preview.dollars for preview in previews),
        note="; ".join(dict.fromkeys(filter(None, (note, *(p.note for p in previews))))),
    )


def preview(
    host: str,
    requests: Iterable[ChatRequest],
    cached: int,
    price_input: float,
    price_output: float,
) -> Preview:
    """The Preview of these requests; cached: how many more the cache answers."""
    count = pictures = size = tokens_in = tokens_out = 0
    for request in requests:
        shown = request.pictures()
        count += 1
        pictures += len(shown)
        size += sum(len(picture.data) for picture in shown)
        tokens_in += text_tokens(request.text()) + sum(map(picture_tokens, shown))
        tokens_out += request.max_tokens
    dollars = (tokens_in * price_input + tokens_out * price_output) / _MILLION
    return Preview(host, count, cached, pictures, size, tokens_in, tokens_out, dollars)


def text_tokens(text: str) -> int:
    """About so many tokens."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


def picture_tokens(picture: Picture) -> int:
    """About so many tokens, from the size in the header; 0 for a picture that cannot be read."""
    try:
        width, height = image_size(picture.data, what="picture")
    except RecordError:
        return 0
    longest = max(width, height)
    if picture.max_side and longest > picture.max_side:
        width, height = width * picture.max_side // longest, height * picture.max_side // longest
    return -(-width * height // PIXELS_A_TOKEN)
