"""Requests of many at once, answered by one engine: a thread of its own feeds it, row after row.

What a request asks is checked and made into model inputs in the thread that brought it. Then it
waits in a queue until a row of the engine is free. An answer is a function of (policy, prompt,
request, seed): of nothing that is answered beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.images import load_image
from srpo_jax.data_pipelines.prompt import Message, question_parts
from srpo_jax.errors import UserError
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import Sample, SampleRequest
from srpo_jax.inference.policy import Policy
from srpo_jax.inference.sampling_mesh import Shape
from srpo_jax.models.inputs import EncodedPrompt
from srpo_jax.serve.chat_call import ChatCall, Turn
from srpo_jax.serve.completion import completion, reply_choice, whole_choice
from srpo_jax.serve.errors import ApiError

MOST_ROWS = 32  # requests at once, unless eval.batch says otherwise
MOST_WAITING = 256  # requests that wait for a row; each holds its pictures
LOOK_SECONDS = 2.0  # between two looks at whether whoever asked is still there
NEVER = "\N{WHITE SMALL SQUARE}" * 64  # a stop text that no answer says


class _Job:
    """A request on its way: `samples` or `error` when `done`. wanted: whether anyone waits."""

    def __init__(self, request: SampleRequest):
        self.request, self.done = request, threading.Event()
        self.samples: list[Sample] = []
        self.wanted = True
        self.error: ApiError | None = None


class Service:
    """The policy as a chat model of the name `name`; start() before the first answer.

    cfg: the sections eval (batch, max_new_tokens) and serve. Errors: UserError where the prompt
    alone has no room.
    """

    def __init__(self, cfg: Config, policy: Policy, name: str):
        self.name, self._policy, self._cfg = name, policy, cfg
        self._choice = whole_choice if cfg.serve.answer == "whole" else reply_choice
        tokens, new = -(-cfg.serve.prompt_tokens // 16) * 16, cfg.eval.max_new_tokens
        patches = self._patches()
        most = cfg.eval.batch or MOST_ROWS
        self.rows = policy.rows(cfg.eval.batch, most, Shape(tokens, 1, new, patches))
        self._engine = Engine(
            policy.model,
            policy.params,
            policy.processor,
            rows=self.rows,
            branches=1,
            prompt_tokens=tokens,
            patches=patches,
            max_new_tokens=new,
            sampling=None,
            mesh=policy.mesh,
        )
        self.fingerprint = f"{policy.digest}-{policy.prompt_digest}"
        self._waiting: queue.Queue[_Job | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._open: set[_Job] = set()  # whoever waits for an answer
        self._closed: ApiError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failure: BaseException | None = None

    def about(self) -> str:
        """What a request may be, in a line."""
        shape = self._engine.shape
        return (
            f"{self.rows} requests at once; a prompt has room for {shape.tokens} tokens and "
            f"{shape.patches} patches of pictures (serve.prompt_tokens, serve.patches), an answer "
            f"for {shape.new_tokens} tokens (eval.max_new_tokens)"
        )

    def start(self) -> None:
        """Compiles everything, then takes requests. Errors: UserError, see the class."""
        prompt = self._policy.asking.encoder.encode("Hello.", [])
        most = min(2, self._engine.shape.new_tokens)
        self._engine(
            [
                SampleRequest(
                    *(prompt, _NO_PATH, (0,), (0,), "serve.prompt_tokens", (NEVER,)),
                    max_new_tokens=most,
                )
            ]
        )
        self._thread.start()

    @property
    def closed(self) -> ApiError | None:
        """Why it takes no requests any more."""
        return self._closed

    def answer(self, call: ChatCall, gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The body of the completion. gone: whether nobody waits for it any more. Errors: ApiError
        for what cannot be asked, and 503 when the service is closed before there is an answer."""
        prompt = self._encode(call)
        job = _Job(self._request(call, prompt))
        with self._lock:
            if self._closed:
                raise self._closed
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                raise ApiError(429, f"{MOST_WAITING} requests wait already; try again") from None
            self._open.add(job)
        while not job.done.wait(LOOK_SECONDS):
            if gone():
                job.wanted = False  # a row that it has it keeps
                with self._lock:
                    self._open.discard(job)
                raise ConnectionAbortedError
        if job.error:
            raise job.error
        choices = [self._choice(self._policy, call, sample) for sample in job.samples]
        return completion(call, choices, len(prompt.tokens), self.fingerprint)

    def check_name(self, model: str) -> None:
        """Errors: ApiError (404) for another model than this one."""
        if model != self.name:
            said = f"there is no model {model!r}; this is {self.name!r}"
            raise ApiError(404, said, code="model_not_found", param="model")

    def close(self, why: ApiError) -> None:
        """Every request that has no answer gets `why`, and so do those that still come."""
        with self._lock:
            self._closed = self._closed or why
            unanswered, self._open = self._open, set()
        for job in unanswered:
            job.error = why
            job.done.set()
        try:
            self._waiting.put_nowait(None)  # wakes the engine
        except queue.Full:
            pass  # it is awake

    def wait(self, seconds: float) -> bool:
        """Whether the engine's thread has ended, after so long at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            jobs: dict[int, _Job] = {}
            source, live = self._requests(jobs), lambda: self._closed is None
            for number, samples in self._engine.stream(source, live=live):
                job = jobs.pop(number)
                job.samples = samples
                with self._lock:
                    self._open.discard(job)
                job.done.set()
        except BaseException as error:
            self.failure = error
            self.close(ApiError(500, "the model failed; the server's log has more"))

    def _requests(self, jobs: dict[int, _Job]) -> Iterator[SampleRequest | None]:
        """Those that wait, as the engine takes them; None when there is nobody, but somebody is
        being answered. jobs: those that are, by their number. Ends when the service is closed.
        """
        number = 0
        while True:
            try:
                job = self._waiting.get(block=not jobs)
            except queue.Empty:
                yield None
                continue
            if job is None or self._closed:
                return
            if not job.wanted:
                continue
            jobs[number] = job
            number += 1
            yield job.request

    def _request(self, call: ChatCall, prompt: EncodedPrompt) -> SampleRequest:
        """Errors: ApiError for one that has no room."""
        whole, room = self._cfg.serve.answer == "whole", self._engine.shape.new_tokens
        if whole and call.max_tokens > room:
            raise ApiError(
                400,
                f"max_tokens is {call.max_tokens} and an answer has room for {room}; ask for less, "
                "or start the server with a larger eval.max_new_tokens",
                code="context_length_exceeded",
                param="max_tokens",
            )
        # Of a reply alone the path is not to be cut: completion.py looks at these.
        request = SampleRequest(
            prompt,
            _NO_PATH,
            (0,) * call.n,
            tuple(_seeds(call)),
            "the request",
            stop=call.stop if whole else (),
            temperature=call.temperature,
            top_p=call.top_p,
            max_new_tokens=call.max_tokens if whole else 0,
        )
        try:
            self._engine.check(request)
        except UserError as error:
            raise ApiError(
                400, f"{error}; {self.about()}", code="context_length_exceeded"
            ) from None
        return request

    def _encode(self, call: ChatCall) -> EncodedPrompt:
        """The request with all that the policy is told around it. Errors: ApiError."""
        self.check_name(call.model)
        encoder, (*earlier, last) = self._policy.asking.encoder, call.turns
        prompt = encoder.prompt
        if earlier and earlier[0].role == "system":
            prompt = dataclasses.replace(prompt, system=earlier.pop(0).text)
        if earlier and prompt.demos and prompt.layout == "text":
            raise ApiError(400, "with prompt.demo_layout=text a request has one question alone")
        try:
            images = [
                load_image(data, what="the request")
                for turn in call.turns
                for data in turn.pictures
            ]
            *told, asked = prompt.messages(last.text, len(last.pictures))
            return encoder.encode_messages([*told, *map(_message, earlier), asked], images)
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_value", param="messages") from None

    def _patches(self) -> int:
        """Room for patches: as configured, or of a prompt that is all pictures."""
        unit = self._policy.processor.config.vision.patch_unit
        wanted = self._cfg.serve.patches
        if not wanted:
            grid = self._policy.processor.images.grid(SIDE, SIDE)
            sizes = self._policy.asking.encoder.sizes
            (bare, others), (tokens, patches) = sizes("?", []), sizes("?", [grid])
            share = (patches - others) / (tokens - bare)
            wanted = int(self._cfg.serve.prompt_tokens * share)
        return max(-(-wanted // unit), 1) * unit


SIDE = 448  # pixels, of a picture that shows how many patches a token has
_NO_PATH = np.zeros(0, np.int32)


def _message(turn: Turn) -> Message:
    """A turn before the last one, as it was."""
    parts = (
        (turn.text,)
        if turn.role == "assistant"
        else tuple(question_parts(turn.text, len(turn.pictures)))
    )
    return Message(turn.role, parts)


def _seeds(call: ChatCall) -> Iterator[int]:
    """One for each choice, a function of the request's seed; without one they are drawn."""
    seed = int.from_bytes(os.urandom(8)) if call.seed is None else call.seed
    for k in range(call.n):
        yield int(hashlib.sha256(f"{seed} {k}".encode()).hexdigest()[:16], 16)
