"""The back end for servers of the OpenAI chat API: OpenAI, vLLM, SGLang, transformers serve.

The openai package does the talking, without retries of its own: there is one budget of retries,
ours. Requests run side by side on an event loop in a thread, so this can be called from anywhere.
The key is read from the environment and appears in no message.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from srpo_jax.arbiter.chat import retries
from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest
from srpo_jax.arbiter.chat.wire import (
    OPTIONAL,
    TOKEN_NAMES,
    read_completion,
    request_body,
    token_names,
)
from srpo_jax.config.fields import arguments
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import RunFailure, UserError, one_line

OPENAI_HOST, OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"


class _Again(Exception):
    """The request failed in a way that may pass. wait: seconds that the server asks for, if any.
    connected: a server was there.
    """

    def __init__(self, why: str, wait: float | None = None, connected: bool = True):
        super().__init__(why)
        self.wait, self.connected = wait, connected


class _Refused(Exception):
    """The server does not take a field that was sent."""


class OpenAIChat:
    """Asks an OpenAI-compatible server. See ChatBackend for `complete`.

    api_key_env: name of the environment variable with the key; "": OPENAI_API_KEY at OpenAI, no key
    elsewhere. timeout_seconds: for one try, all of it. retries: of a request, all causes together.
    max_tokens_name: what the server calls the limit, tried first. strict_schema: a server that
    takes no schema is an error. first_wait: seconds before the first retry.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str = "",
        concurrency: int = 16,
        timeout_seconds: float = 120.0,
        retries: int = 6,
        max_tokens_name: str = TOKEN_NAMES[0],
        strict_schema: bool = False,
        first_wait: float = retries.FIRST_WAIT,
    ):
        self.base_url, self.host = base_url, host_of(base_url)
        self.api_key_env = api_key_env
        self.concurrency, self.timeout, self.retries = concurrency, timeout_seconds, retries
        self.strict_schema, self.first_wait = strict_schema, first_wait
        self._token_names = token_names(max_tokens_name)
        self._refused: set[str] = set()  # fields that the server does not take
        self._answered = False
        self._not_before = 0.0  # of time.monotonic; the server asked everyone to wait
        self._key = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None

    @classmethod
    def of(cls, settings: JudgeSettings) -> OpenAIChat:
        """The server that the settings name."""
        return cls(**arguments(cls, settings), strict_schema=settings.structured == "schema")

    def complete(
        self,
        requests: Sequence[ChatRequest],
        on_reply: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """See ChatBackend.complete."""
        loop = self._running_loop()
        future = asyncio.run_coroutine_threadsafe(self._ask_all(requests, on_reply), loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, too: what is under way is of no use to anyone
            future.cancel()
            raise

    def check(self) -> None:
        """What is known to go wrong before anything is asked. Errors: UserError for a package or a
        key that is missing.
        """
        _openai()
        self._read_key()

    def close(self) -> None:
        """Closes all connections; it may be used again afterwards."""
        if self._loop is None:
            return
        loop, client = self._loop, self._client
        self._loop = self._client = None
        asyncio.run_coroutine_threadsafe(client.close(), loop).result()
        self._stop_loop()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._client = self._make_client()
            self._loop = asyncio.new_event_loop()
            self._slots = asyncio.Semaphore(self.concurrency)
            thread = threading.Thread(
                target=_serve, args=(self._loop,), name="judge calls", daemon=True
            )
            thread.start()
            # Also when nobody closes it: its threads end when nothing holds it any more.
            self._stop_loop = weakref.finalize(self, _stop, self._loop)
        return self._loop

    def _make_client(self) -> Any:
        openai = _openai()
        self._key = self._read_key()
        # A redirect would carry pictures to a host that nobody named, and so would a proxy of the
        # environment for a server on this machine.
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, trust_env=not is_loopback(self.host)
        )
        return openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=self.timeout,
            http_client=http,
        )

    def _read_key(self) -> str:
        name = self.api_key_env or (OPENAI_KEY if self.host == OPENAI_HOST else "")
        key = os.environ.get(name, "").strip() if name else ""
        if name and not key:
            raise UserError(
                f"the environment variable {name} holds no key for {self.host}: set it, or name"
                " another with judge.api_key_env"
            )
        return key

    async def _ask_all(self, requests, on_reply) -> list[ChatReply]:
        replies: list[ChatReply] = [ChatReply()] * len(requests)

        ended = False  # whose turn comes now must not ask: the others are cancelled a moment later

        async def ask(index: int) -> None:
            nonlocal ended
            async with self._slots:
                if ended:
                    return
                try:
                    replies[index] = await self._ask(requests[index])
                except BaseException:
                    ended = True
                    raise
            if on_reply:
                on_reply(index, replies[index])

        tasks = [asyncio.create_task(ask(index)) for index in range(len(requests))]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return replies

    async def _ask(self, request: ChatRequest) -> ChatReply:
        """Asks until there is an answer or the budget is spent."""
        failures, unreadable = 0, 0
        while True:
            await self._wait_turn()
            try:
                reply = await self._try(request)
            except _Refused:  # asked again at once; costs nothing, and each field only once
                continue
            except _Again as error:
                failures += 1
                if failures > self.retries:
                    if not error.connected and not self._answered:
                        raise RunFailure(
                            f"no judge answers at {self.base_url} ({error}): start its server, or"
                            " set judge.base_url"
                        ) from None
                    return ChatReply(error=f"{error} (tried {failures} times)")
                await self._pause(error.wait, failures)
                continue
            self._answered = True
            rejected = request.accepts is not None and not request.accepts(reply)
            if rejected and not unreadable and failures < self.retries:
                unreadable, failures = 1, failures + 1
                continue
            return reply

    async def _wait_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            # Not all at once, when the wait is over.
            await asyncio.sleep(left + random.uniform(0, min(left, 1.0)))

    async def _pause(self, asked: float | None, failures: int) -> None:
        if asked is None:
            await asyncio.sleep(retries.backoff(failures, self.first_wait))
        else:
            self._not_before = max(self._not_before, time.monotonic() + asked)

    async def _try(self, request: ChatRequest) -> ChatReply:
        import openai

        try:
            body = request_body(request, self._token_names, self._refused)
        except Exception as error:  # of a picture, say
            return ChatReply(error=one_line(f"cannot be sent: {error}", 200))
        create = self._client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self.timeout):
                raw = await create(**body)
        except (TimeoutError, openai.APITimeoutError):
            raise _Again(f"no answer in {self.timeout:g} seconds") from None
        except openai.APIConnectionError as error:
            why = one_line(f"no connection: {error.__cause__ or error}", 200)
            raise _Again(self._redacted(why), connected=False) from None
        except openai.APIStatusError as error:
            return self._failed(error.status_code, error.response.headers, error.body, body)
        try:
            reply = read_completion(raw.http_response.content, request.labels)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _Again(
                one_line(f"the server answered with no completion: {error}", 200)
            ) from None
        dropped = tuple(sorted(self._refused - set(body)))
        return ChatReply(**{**vars(reply), "dropped": dropped})

    def _failed(self, status: int, headers: Any, said: Any, body: dict[str, Any]) -> ChatReply:
        """The reply that an HTTP status stands for, or the exception."""
        message, code, param = retries.told(said, f"HTTP {status}")
        message = self._redacted(one_line(message, 200))
        if status in retries.ENDS or status < 400 or code in retries.NO_MONEY:
            raise UserError(self._ending(status, code, message))
        if code in retries.FILTERED:
            return ChatReply(finish_reason="content_filter", dropped=tuple(sorted(self._refused)))
        if status in retries.AGAIN or status >= 500:
            raise _Again(f"HTTP {status}", retries.wait_asked(headers, time.time()))
        field = retries.refused_field([f for f in OPTIONAL if f in body], param, message)
        if field == "response_format" and self.strict_schema:
            raise UserError(
                f"{self.host} takes no JSON schema ({message}): judge.structured=auto goes without"
            )
        if field:
            self._refused.add("logprobs" if field == "top_logprobs" else field)
            raise _Refused
        return ChatReply(error=f"HTTP {status}: {message}")

    def _ending(self, status: int, code: str, message: str) -> str:
        """Why the stage ends, on one line. What a server says of a wrong key may quote it."""
        if code in retries.NO_MONEY or status == 402:
            return (
                f"{self.host} says that the account has no quota left ({code or status}): top it up"
            )
        if status == 401:
            return f"{self.host} does not take the key: judge.api_key_env names its variable"
        if status == 404:
            return f"{self.base_url}: {message}: look at judge.base_url and judge.model"
        if status < 400:
            return f"{self.base_url} leads elsewhere (HTTP {status}): set judge.base_url to that"
        return f"{self.host} refuses: HTTP {status}: {message}"

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _openai() -> Any:
    """The package, imported when it is needed: the judge is an extra."""
    try:
        import openai
    except ImportError:
        raise UserError(
            "asking a judge needs the package openai: pip install 'srpo_jax[judge]'"
        ) from None
    return openai


def host_of(base_url: str) -> str:
    """The host of an address such as http://127.0.0.1:8000/v1. Errors: UserError."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"judge.base_url={base_url!r} is no address such as http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password:
        raise UserError(
            "judge.base_url holds a password: put the key into a variable and name it"
            " with judge.api_key_env"
        )
    return host


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Runs the loop until it is stopped, and ends its helpers."""
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name: localhost or an address of the loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
