"""A chat model in this process: a checkpoint that our own stack runs answers chat requests."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest, Message, Picture
from srpo_jax.arbiter.in_process.closed_set import Filling
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines import prompt
from srpo_jax.data_pipelines.images import load_image
from srpo_jax.errors import UserError, one_line
from srpo_jax.inference.choice_scores import Choices, ChoiceScorer, room
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import Network, load_network
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import BAKED, processor_digest
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.models.inputs import EncodedPrompt, check_length, encode_prompt

AHEAD = 4
THINKING = ("<think>", "</think>")


class _Asked(NamedTuple):
    index: int
    request: ChatRequest
    prompt: EncodedPrompt


class PolicyChat:
    """The ChatBackend of the checkpoint in `folder`. Its tokenizer is read at once, its weights
    when the first request comes. cfg: dtype, attention and mesh of the computation.

    labels: a request with a schema of labels alone is answered by choosing among them, with exact
    log-probabilities; without it, and for any other request, the model writes its answer, which
    nothing constrains. batch: requests at once.
    Errors: UserError for a folder that cannot be loaded or whose chat template has a prompt in it.
    """

    host = "localhost"
    in_process = True  # how fast it is, nobody can tell beforehand

    def __init__(self, folder: str, cfg: Config, *, labels: bool, batch: int):
        path = pathlib.Path(folder)
        if not path.is_dir():
            raise UserError(f"judge.model={folder!r} is no folder: name the judge's HF directory")
        if (path / BAKED).is_file():
            raise UserError(
                f"judge.model={folder!r} has a prompt in its chat template ({BAKED}), which a judge"
                " must not be asked with: name the checkpoint that was exported without"
                " --bake_prompt"
            )
        self._folder, self._cfg, self._labels, self._wanted = path, cfg, labels, batch
        opening = f"{THINKING[0]}\n"
        self.processor = Processor.from_dir(path, cfg.model.family, THINKING, opening)
        self._has_system = self._takes_system()
        self._engines: dict[tuple, Engine] = {}

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name all that decides its answers."""
        made_by = [
            policy_digest(self._folder),
            processor_digest(self._folder),
            self._cfg.model.dtype,
        ]
        return hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:16]

    @cached_property
    def _network(self) -> Network:
        return load_network(self._cfg, self._folder)

    @property
    def _batch(self) -> int:
        return self._network.rows(self._wanted)

    @cached_property
    def _scorer(self) -> ChoiceScorer:
        model, params, mesh = self._network
        return ChoiceScorer(model, params, batch=self._batch, mesh=mesh)

    def complete(
        self,
        requests: Sequence[ChatRequest],
        on_reply: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """See ChatBackend.complete. A request that cannot be put to this model (too long, a picture
        that cannot be read) has its reason as `error`.
        """
        replies: list[ChatReply] = [ChatReply()] * len(requests)

        def told(index: int, reply: ChatReply) -> None:
            replies[index] = reply
            if on_reply:
                on_reply(index, reply)

        def encoded(number: int) -> _Asked | None:
            try:
                return _Asked(number, requests[number], self._encode(requests[number]))
            except Exception as error:  # of one picture, or a template that one text breaks
                told(number, ChatReply(error=one_line(f"cannot be asked: {error}", 200)))
                return None

        # Long ones together: a batch of choices is as long as its longest. What is written comes
        # AHEAD batches at a time, as rows that are done take the next one.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].text()))
        for answer, chosen, size in (
            (self._choose, True, self._batch),
            (self._write, False, AHEAD * self._batch),
        ):
            own = [i for i in order if self._chooses(requests[i]) == chosen]
            for start in range(0, len(own), size):
                batch = [a for i in own[start : start + size] if (a := encoded(i))]
                for index, reply in answer(batch) if batch else ():
                    told(index, reply)
        return replies

    def _chooses(self, request: ChatRequest) -> bool:
        return self._labels and request.schema is not None

    def _choose(self, batch: Sequence[_Asked]) -> Iterator[tuple[int, ChatReply]]:
        fillings = [Filling(a.request.schema or {}, self._answer_ids) for a in batch]
        given = [0] * len(batch)
        while some := [i for i, filling in enumerate(fillings) if filling.open]:
            asked = [Choices(batch[i].prompt, *fillings[i].question()) for i in some]
            for i, question, scores in zip(some, asked, self._scorer(asked), strict=True):
                fillings[i].choose(scores)
                given[i] = len(question.given)
        for asked, filling, tokens_out in zip(batch, fillings, given, strict=True):
            yield (
                asked.index,
                ChatReply(
                    text=filling.answer(),
                    finish_reason="stop",
                    tokens_in=len(asked.prompt.tokens),
                    tokens_out=tokens_out,
                    logprobs=tuple(filling.tokens()) if asked.request.labels else None,
                    model=asked.request.model,
                ),
            )

    def _answer_ids(self, text: str) -> list[int]:
        """Of an answer from its start; thinking that the template opens is closed at once."""
        closed = f"\n{THINKING[1]}\n\n" if self.processor.opened else ""
        return self.processor.encode(f"{closed}{text}")

    def _write(self, batch: Sequence[_Asked]) -> Iterator[tuple[int, ChatReply]]:
        settings = {(a.request.temperature, a.request.max_tokens) for a in batch}
        for temperature, most in sorted(settings):
            some = [
                a
                for a in batch
                if (a.request.temperature, a.request.max_tokens) == (temperature, most)
            ]
            asked = [
                SampleRequest(a.prompt, np.zeros(0, np.int32), (0,), (_seed(a.request),), "a case")
                for a in some
            ]
            samples = self._engine(some, temperature, most)(asked)
            for a, (sample,) in zip(some, samples, strict=True):
                text = self.processor.decode(sample.tokens.tolist())
                yield (
                    a.index,
                    ChatReply(
                        text=without_thinking(text),
                        finish_reason="stop" if sample.finished else "length",
                        tokens_in=len(a.prompt.tokens),
                        tokens_out=len(sample.tokens),
                        model=a.request.model,
                    ),
                )

    def _engine(self, batch: Sequence[_Asked], temperature: float, most: int) -> Engine:
        """One that has room for the batch; there are few of them, each compiled once."""
        model, params, mesh = self._network
        unit = model.config.vision.patch_unit
        tokens = room(max(len(a.prompt.tokens) for a in batch), 64)
        patches = room(max(len(a.prompt.patches) for a in batch), unit)
        key = (temperature, most, tokens, patches)
        if key not in self._engines:
            self._engines[key] = Engine(
                model,
                params,
                self.processor,
                rows=self._batch,
                branches=1,
                prompt_tokens=tokens,
                patches=patches,
                max_new_tokens=most,
                sampling=Sampling(temperature),
                mesh=mesh,
            )
        return self._engines[key]

    def _encode(self, request: ChatRequest) -> EncodedPrompt:
        pictures = [self.processor.image(_opened(picture)) for picture in request.pictures()]
        messages = self._messages(request.messages)
        tokens = self.processor.chat_tokens(messages, [grid for _, grid in pictures])
        encoded = encode_prompt(tokens, pictures, self.processor.config)
        # An answer of labels is shorter than its schema, in characters even.
        chosen = self._chooses(request)
        answer = len(json.dumps(request.schema)) if chosen else request.max_tokens
        check_length(encoded.next_position + answer, self.processor.config)
        return encoded

    def _messages(self, messages: Sequence[Message]) -> list[prompt.Message]:
        """In the processor's form; what a template without system messages is told first stands in
        front of the first user message's text.
        """
        found = [prompt.Message(m.role, _parts(m.parts)) for m in messages]
        if found[0].role == "system" and not self._has_system:
            first, second, *others = found
            where = next(i for i, part in enumerate(second.parts) if isinstance(part, str))
            told = (*first.parts, "\n\n")
            parts = (*second.parts[:where], *told, *second.parts[where:])
            found = [prompt.Message(second.role, parts), *others]
        return found

    def _takes_system(self) -> bool:
        messages = [prompt.Message("system", ("Sort.",)), prompt.Message("user", ("What?",))]
        try:
            self.processor.chat_tokens(messages, [])
        except UserError:
            # It must at least take a user message; if not, the error is told here.
            self.processor.chat_tokens(messages[1:], [])
            return False
        return True


def without_thinking(text: str) -> str:
    """The answer behind the thinking that a model wrote first, if it closed it."""
    _, closed, answer = text.rpartition(THINKING[1])
    return answer.lstrip() if closed else text


def _parts(parts: Sequence[str | Picture]) -> tuple[str | prompt.Picture, ...]:
    """Pictures behind a text stand where they stand; the others are in front of the message."""
    found: list[str | prompt.Picture] = []
    for part in parts:
        behind = any(isinstance(other, str) for other in found)
        found.append(part if isinstance(part, str) else prompt.Picture(inside=behind))
    return tuple(found)


def _opened(picture: Picture):
    return load_image(picture.sent()[0], what="picture of a case")


def _seed(request: ChatRequest) -> int:
    """Of the sampler, by the whole request: the same vote on another case is another draw."""
    return int(hashlib.sha256(request.key.encode()).hexdigest()[:16], 16)
