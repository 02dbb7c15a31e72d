"""A policy behind a server: any model of an OpenAI-compatible endpoint answers the questions.

What a server said is kept (WORKDIR/replies), so that an evaluation that was killed asks nothing
twice and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.arbiter.chat.messages import ChatBackend, ChatReply, ChatRequest, Message, Picture
from srpo_jax.arbiter.chat.openai_api import OpenAIChat
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.prompted import refuse_upload
from srpo_jax.config.fields import Config, arguments
from srpo_jax.console import say
from srpo_jax.data_pipelines.images import read_image_bytes
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.path_formats.statuses import NO_THINKING
from srpo_jax.data_pipelines.prompt import Prompt, make_prompt
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.evaluate.answering import Answered, Answerer, Decoding
from srpo_jax.inference.configured_format import configured_format

REPLIES = "replies"  # as of judges: a request's key says who was asked what
FILTERED = "content_filter"  # the status of an answer that the server kept back


class Server(NamedTuple):
    """model: as the server knows it. base_url: of the server. api_key_env: of the variable with the
    key; "": OPENAI_API_KEY at OpenAI, else none. allow_upload: pictures may leave this machine.
    backend: who answers instead of the server.
    """

    model: str
    base_url: str = "http://127.0.0.1:8000/v1"
    api_key_env: str = ""
    allow_upload: bool = False
    backend: ChatBackend | None = None


class ServedPolicy:
    """How a served model is asked: the prompt and the path format of the config. digest: of its
    name, as nobody can look at its weights. Errors: UserError for settings, a key that is missing,
    and pictures that may not leave.
    """

    def __init__(self, cfg: Config, server: Server, records: Sequence[Record]):
        if not server.model.strip():
            raise UserError("--served_model is empty: name the model as its server knows it")
        self.server = server
        self.backend = server.backend or OpenAIChat(server.base_url, api_key_env=server.api_key_env)
        getattr(self.backend, "check", lambda: None)()
        self.form = configured_format(cfg.format)
        self.prompt = make_prompt(self.form, **arguments(make_prompt, cfg.prompt))
        self.path_format = self.form.settings()
        for record in records:
            self.prompt.of_category(record.category)  # what it cannot be asked with is told now
        shown = sum(len(record.images) for record in records)
        shown += sum(len(demo.images) for demo in self.prompt.demos)
        refuse_upload(shown, self.backend.host, allowed=server.allow_upload)
        self.digest = _short(f"served {server.model}")
        self.prompt_digest = _short(f"{self.prompt.digest()} {json.dumps(self.path_format)}")

    def messages(self, record: Record) -> tuple[Message, ...]:
        """The conversation in which a question is asked, with its pictures."""
        return chat_messages(self.prompt, record)

    def branch(self, k: int, reply: ChatReply) -> dict[str, Any]:
        """See written_branch."""
        return written_branch(self.form, k, reply)


def chat_messages(prompt: Prompt, record: Record) -> tuple[Message, ...]:
    """The conversation in which a question is asked of a chat model, with all pictures. Errors:
    UserError as Prompt.of_category.
    """
    prompt = prompt.of_category(record.category)
    demos = [data for demo in prompt.demos for data in demo.images]
    pictures = [Picture(data, prompt.max_side) for data in demos]
    for path in record.image_paths():
        pictures.append(Picture(read_image_bytes(path, what=f"record {record.id!r}")))
    left = iter(pictures)
    return tuple(
        Message(m.role, tuple(p if isinstance(p, str) else next(left) for p in m.joined))
        for m in prompt.messages(record.question, len(record.images))
    )


def written_branch(form: PathFormat, k: int, reply: ChatReply) -> dict[str, Any]:
    """A chat model's answer in the form of the tree schema, without tokens. What comes apart as a
    refusal is a reply: the user sees it.
    """
    text = reply.refusal or reply.text or ""
    ended = reply.finish_reason in (None, "stop")
    steps, said, status = (), None, FILTERED
    if reply.refusal:
        said, status, ended = reply.refusal, NO_THINKING, True
    elif reply.finish_reason != "content_filter":
        read = form.parse(text, finished=ended)
        steps, said, status = read.steps, read.reply, read.status
    return {
        "at": 0,
        "k": k,
        "parent": None,
        "tokens": [],
        "text": text,
        "finished": ended or status == FILTERED,
        "logp": None,
        "status": status,
        "step_texts": list(steps),
        "reply_text": said,
    }


class ServedAnswerer(Answerer):
    """Asks for the answers of a shard at once, one shard after the other."""

    def __init__(
        self,
        cfg: Config,
        policy: ServedPolicy,
        name: str,
        total: int,
        about: Mapping[str, Any],
        decoding: Decoding,
        workdir: pathlib.Path,
    ):
        super().__init__(cfg, name, total, about)
        if decoding.prefix:
            raise UserError(
                "eval.forced_prefix needs the policy here: no server's chat API begins an answer "
                "for its model"
            )
        self._policy, self._decoding = policy, decoding
        self._cache = ReplyCache(workdir / REPLIES)
        self._dropped: set[str] = set()

    def shards(
        self, parts: Mapping[int, Sequence[Record]]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """See Answerer.shards."""
        for i, part in parts.items():
            yield from super().shards({i: part})

    def answers(self, records: Sequence[Record]) -> Iterator[Answered]:
        """See Answerer.answers. Errors: RunFailure when a question got no answer; what was answered
        is kept.
        """
        asked = [self._requests(record) for record in records]
        replies = self._ask([request for own in asked for request in own])
        for number, (record, own) in enumerate(zip(records, asked, strict=True)):
            branches = []
            for k, request in enumerate(own):
                reply = replies[request.key]
                if reply.error is not None:
                    raise RunFailure(
                        f"record {record.id!r} got no answer of {self._policy.server.model}: "
                        f"{one_line(reply.error, 200)}; run the same command again"
                    )
                branches.append(self._policy.branch(k, reply))
            yield number, record, branches

    def _requests(self, record: Record) -> list[ChatRequest]:
        messages = self._policy.messages(record)
        return [
            ChatRequest(
                model=self._policy.server.model,
                messages=messages,
                temperature=self._decoding.temperature,
                max_tokens=self._decoding.max_new_tokens,
                seed=seed >> 33,  # 31 bits: servers take a positive int32
            )
            for seed in self._decoding.seeds(record)
        ]

    def _ask(self, requests: Sequence[ChatRequest]) -> dict[str, ChatReply]:
        """The reply to each request by its key: kept ones, and those that are asked for now."""
        found: dict[str, ChatReply] = {}
        missing: dict[str, ChatRequest] = {}
        for request in requests:
            kept = self._cache.get(request.key)
            if kept is not None and kept.error is None:
                found[request.key] = kept
            else:
                missing[request.key] = request
        sent = list(missing.values())

        def keep(index: int, reply: ChatReply) -> None:
            if reply.error is None:
                self._cache.put(sent[index].key, reply)

        try:
            replies = self._policy.backend.complete(sent, keep) if sent else []
        finally:
            self._cache.flush()
        found |= dict(zip(missing, replies, strict=True))
        dropped = {name for reply in found.values() for name in reply.dropped} - self._dropped
        if dropped:
            self._dropped |= dropped
            named = ", ".join(sorted(dropped))
            say(f"eval {self._name}: warning: the server does not take {named}", to=sys.stderr)
        return found


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
