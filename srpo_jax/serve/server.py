"""The HTTP side: paths, sizes and status codes of the OpenAI API, over Python's own server.

GET /health, GET /v1/models, GET /v1/models/NAME, POST /v1/chat/completions
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from srpo_jax import __version__
from srpo_jax.arbiter.chat.openai_api import is_loopback
from srpo_jax.console import say
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.serve.chat_call import read_call
from srpo_jax.serve.completion import events
from srpo_jax.serve.errors import ApiError
from srpo_jax.serve.service import Service

MAX_BODY = 64 * 2**20  # bytes of a request
MOST_PASSED_OVER = 8 * MAX_BODY
QUIET_SECONDS = 60.0  # a connection on which nothing comes for so long is closed
LAST_WORDS = 5.0  # seconds in which those who wait are told that it is over
CHAT, MODELS, HEALTH = "/v1/chat/completions", "/v1/models", "/health"


def check_address(host: str, port: int, allow_remote: bool) -> None:
    """Errors: UserError for a host that others reach and that nobody allowed, or a port that there
    is not.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port={port}: a port is a number from 0 to {2**16 - 1}")
    if not allow_remote and not is_loopback(host):
        raise UserError(
            f"--host={host}: other machines could ask the model, and there is no password; use "
            "127.0.0.1 (and a tunnel, say ssh -L), or give --allow_remote"
        )


class Server(ThreadingHTTPServer):
    """Listens at (host, port) from the moment it is made, and refuses with 503 until `service` is
    set. Errors: UserError for an address that cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int):
        self.service: Service | None = None
        self.began = int(time.time())
        self._answering, self._lock = 0, threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--host={host} --port={port}: cannot listen there: {why}") from None

    @property
    def url(self) -> str:
        """Of the API, for clients."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/v1"

    def run(self) -> None:
        """Answers by `service` until somebody raises KeyboardInterrupt or SystemExit in this
        thread: then all who wait are told, and it goes on to whom it concerns. Errors: RunFailure
        when the engine fails.
        """
        service = self.service
        assert service is not None
        try:
            while not service.wait(0.5):
                pass
        finally:
            service.close(ApiError(503, "the server ends"))
            over = time.monotonic() + LAST_WORDS
            while self._answering and time.monotonic() < over:
                time.sleep(0.02)
            service.wait(over - time.monotonic())
        raise RunFailure(f"the engine failed: {one_line(repr(service.failure), 300)}") from (
            service.failure
        )

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around the answer to a request."""
        with self._lock:
            self._answering += 1
        try:
            yield
        finally:
            with self._lock:
                self._answering -= 1


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[Server]:
    """A Server whose thread takes connections; closed at the end of the `with`."""
    with Server(host, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """One connection, which may bring several requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"srpo_jax/{__version__}"
    timeout = QUIET_SECONDS

    def do_GET(self) -> None:  # noqa: N802  the name that http.server calls
        self._answered(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._answered(self._post)

    def log_message(self, *_: Any) -> None:
        """Nothing: questions and answers belong into no log."""

    def _answered(self, answer: Any) -> None:
        with self.server.answering():
            try:
                data, kind = answer()
                status = 200
            except ApiError as error:
                status, kind = error.status, "application/json"
                data = json.dumps(error.body()).encode()
            except (TimeoutError, ConnectionError):  # nobody listens
                self.close_connection = True
                return
            except Exception as error:
                say(f"serve: a request failed: {one_line(repr(error), 300)}", to=sys.stderr)
                status, kind = 500, "application/json"
                data = json.dumps(ApiError(500, "the server failed").body()).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "1")
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

    def _check_host(self) -> None:
        """Nor a page whose own name leads to this machine (DNS rebinding)."""
        try:
            asked = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            raise ApiError(400, "the header Host names no host") from None
        if is_loopback(str(self.server.server_address[0])) and not is_loopback(asked or ""):
            raise ApiError(403, "ask for this machine by localhost or its loopback address")

    def _gone(self) -> bool:
        """Whether the other end has closed the connection, as clients do that lost patience."""
        looking = select.poll()
        looking.register(self.connection, select.POLLIN)
        return bool(looking.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)

    def _pass_over(self, size: int) -> None:
        """Reads what is not wanted: who still sends would not see the answer."""
        left = min(size, MOST_PASSED_OVER)
        while left > 0 and (read := len(self.rfile.read(min(left, 2**20)))):
            left -= read

    def _service(self) -> Service:
        service = self.server.service
        if service is None:
            raise ApiError(503, "the server is not ready")
        if service.closed:
            raise service.closed
        return service

    def _get(self) -> tuple[bytes, str]:
        self._check_host()
        path = self.path.partition("?")[0]
        if path not in (HEALTH, MODELS) and not path.startswith(f"{MODELS}/"):
            raise ApiError(404, f"there is no {path!r}; there is {CHAT}, {MODELS} and {HEALTH}")
        service = self._service()
        if path == HEALTH:
            return b'{"status": "ok"}', "application/json"
        model = {
            "id": service.name,
            "object": "model",
            "created": self.server.began,
            "owned_by": "srpo_jax",
        }
        if path == MODELS:
            return json.dumps({"object": "list", "data": [model]}).encode(), "application/json"
        service.check_name(path.removeprefix(f"{MODELS}/"))
        return json.dumps(model).encode(), "application/json"

    def _post(self) -> tuple[bytes, str]:
        kept, self.close_connection = self.close_connection, True  # until the body is read
        self._check_host()
        if self.path.partition("?")[0] != CHAT:
            raise ApiError(404, f"there is no {self.path!r} to post to; there is {CHAT}")
        # A page in a browser may send anything to this machine, but not of this type unasked.
        if self.headers.get_content_type() != "application/json":
            raise ApiError(415, "send Content-Type: application/json")
        size = self.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit()) or "Transfer-Encoding" in self.headers:
            raise ApiError(411, "send the body with its Content-Length")
        if len(size) > 12 or int(size) > MAX_BODY:
            self._pass_over(int(size[:12]))
            raise ApiError(413, f"a request has at most {MAX_BODY} bytes; send smaller pictures")
        body = self.rfile.read(int(size))
        if len(body) < int(size):
            raise ApiError(400, "the body ends before its Content-Length")
        self.close_connection = kept
        call = read_call(body)
        found = self._service().answer(call, self._gone)
        if call.stream:
            return events(found, with_usage=call.usage), "text/event-stream"
        return json.dumps(found).encode(), "application/json"
