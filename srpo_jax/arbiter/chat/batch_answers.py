"""What a batch API, or `vllm run-batch`, answered to a batch file (batch_files.py).

A line is {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}. Lines
come in any order and in any number of files, which may be from anywhere: nothing in them is
trusted, and what is wrong is named by file and line.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from srpo_jax.arbiter.chat import retries
from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest
from srpo_jax.arbiter.chat.wire import OPTIONAL, reply_of
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import parse_json

LONGEST_LINE = 64 * 2**20  # bytes; an answer is a few thousand
SUFFIX = ".jsonl"
NO_ANSWER = "no answer in the batch"
_KEY = 64  # hex digits of the key of a request

# What helps when a server does not take a field that a batch had.
_HELP = {
    "response_format": "judge.structured=off leaves it out",
    "logprobs": "judge.logprobs=False leaves it out",
    "top_logprobs": "judge.logprobs=False leaves it out",
    "max_completion_tokens": "judge.max_tokens_name=max_tokens names it otherwise",
    "max_tokens": "judge.max_tokens_name=max_completion_tokens names it otherwise",
    "temperature": "judge.temperature sets another; asked live, it is left out",
    "seed": "asked live, it is left out",
}


class _Spot(NamedTuple):
    """Where an answer is: number of the file, offset and number of the line; digest: of what it
    says.
    """

    file: int
    offset: int
    line: int
    digest: bytes


class BatchAnswers:
    """The answers in `files`, found by the keys of the requests; see answer_files.

    All lines are read at once, and only where they are is kept. failures: how many ids have an
    error instead of an answer; first_failure: where and what the first is. passed_over: files of
    requests, which are an error when they are `named`.

    Errors: UserError for a line that is no JSON, too long or no answer, for an id with two
    different answers, and when there is no line at all.
    """

    def __init__(self, files: Sequence[pathlib.Path], named: Sequence[pathlib.Path] = ()):
        self.files = list(files)
        self.passed_over: list[pathlib.Path] = []
        self._spots: dict[bytes, _Spot] = {}
        failed: dict[bytes, str] = {}
        same: dict[str, str] = {}  # a reason is kept once
        for number, path in enumerate(self.files):
            for offset, line, row in _lines(path):
                if _is_request(row):
                    if path in named or line > 1:
                        raise UserError(
                            f"{path}:{line} is a request, not an answer: give the file that the"
                            " batch came back with"
                        )
                    self.passed_over.append(path)
                    break
                key, said = self._read(row, number, line)
                if isinstance(said, str):
                    failed.setdefault(key, same.setdefault(said, f"{path}:{line}: {said}"))
                    continue
                self._add(key, _Spot(number, offset, line, _digest(said)))
        if not self._spots and not failed:
            raise UserError(f"{', '.join(map(str, self.files))}: there is no answer in it")
        left = [why for key, why in failed.items() if key not in self._spots]
        self.failures, self.first_failure = len(left), next(iter(left), "")

    def __len__(self) -> int:
        return len(self._spots)

    def __contains__(self, key: str) -> bool:
        return _id(key) in self._spots

    def ids(self) -> Iterator[str]:
        """The ids of all answers, as they are written, in the order of the files."""
        for key in self._spots:
            yield _text(key)

    def place(self, key: str) -> str:
        """The file and line of an answer."""
        spot = self._spots[_id(key)]
        return f"{self.files[spot.file]}:{spot.line}"

    def get(self, key: str, labels: Sequence[str]) -> ChatReply:
        """The answer to the request of this key, with an `error` when its log-probabilities cannot
        be read. labels: as of that request.
        """
        spot = self._spots[_id(key)]
        with open(self.files[spot.file], "rb") as file:
            file.seek(spot.offset)
            try:
                said = _outcome(json.loads(file.readline(LONGEST_LINE)), labels)
            except (ValueError, AttributeError):
                raise UserError(f"{self.place(key)} changed while it was read") from None
        return ChatReply(error=said) if isinstance(said, str) else said

    def _read(self, row: Any, number: int, line: int) -> tuple[bytes, ChatReply | str]:
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str) or not ("response" in row or "error" in row):
            raise UserError(
                f"{self.files[number]}:{line} is no answer of a batch: it needs custom_id, and"
                " response or error"
            )
        return _id(key), _outcome(row, ())

    def _add(self, key: bytes, spot: _Spot) -> None:
        known = self._spots.setdefault(key, spot)
        if known.digest != spot.digest:
            raise UserError(
                f"{self.place(_text(key))} and {self.files[spot.file]}:{spot.line} answer the same"
                f" request ({one_line(_text(key), 80)}) differently: remove one of them"
            )


class Wanted:
    """The back end that notes what is asked and answers nothing: `labels` by the requests' keys,
    and `prices`, of a million tokens in and out, of those that come from `serving`.
    """

    host = "localhost"  # nothing is sent anywhere
    sends = False
    deferred = True  # see BatchWriter

    def __init__(self):
        self.labels: dict[str, tuple[str, ...]] = {}
        self.prices: dict[str, tuple[float, float]] = {}
        self._price: tuple[float, float] | None = None

    def serving(self, settings: JudgeSettings) -> Wanted:
        """This for one of several judges, which has prices of its own."""
        one = Wanted()
        one.labels, one.prices = self.labels, self.prices
        one._price = settings.price_input, settings.price_output
        return one

    def complete(
        self,
        requests: Sequence[ChatRequest],
        on_reply: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """See ChatBackend.complete; on_reply is not called, as there is no answer."""
        self.labels.update((request.key, request.labels) for request in requests)
        if self._price:
            self.prices.update(dict.fromkeys((request.key for request in requests), self._price))
        return [ChatReply(error=NO_ANSWER) for _ in requests]


def answer_files(text: str) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """(all files, those of them that are named one by one) of what --read_batch says: files,
    folders (their *.jsonl) and patterns, with commas between. Errors: UserError for what is not
    there.
    """
    found: dict[pathlib.Path, None] = {}
    named = []
    for part in [text] if os.path.exists(text) else text.split(","):
        path = pathlib.Path(part.strip())
        if path.is_file():
            named.append(path)
            more: Iterable[pathlib.Path] = [path]
        elif path.is_dir():
            more = sorted(path.glob(f"*{SUFFIX}"))
        else:
            more = sorted(p for p in map(pathlib.Path, glob.glob(part.strip())) if p.is_file())
        more = list(more)
        if not more:
            raise UserError(f"--read_batch={part.strip()}: no such file, folder or pattern")
        found.update(dict.fromkeys(more))
    return list(found), named


def _lines(path: pathlib.Path) -> Iterator[tuple[int, int, Any]]:
    """(offset, number, value) of the lines that are not empty. Errors: UserError."""
    offset = 0
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path}:{number} is longer than {LONGEST_LINE // 2**20} MiB: no answer is"
                )
            if line.strip():
                try:
                    value = parse_json(line)
                except ValueError:
                    raise UserError(
                        f"{path}:{number} is not JSON: the file is damaged, or not all of it"
                    ) from None
                yield offset, number, value
            offset += len(line)


def _is_request(row: Any) -> bool:
    return isinstance(row, dict) and "body" in row and not ("response" in row or "error" in row)


def _outcome(row: dict[str, Any], labels: Sequence[str]) -> ChatReply | str:
    """The reply in a line, or why there is none. What a content filter stopped is a reply."""
    response, error = row.get("response"), row.get("error")
    status = response.get("status_code") if isinstance(response, dict) else None
    body = response.get("body") if isinstance(response, dict) else None
    if status == 200 and not error:
        try:
            return reply_of(body, labels)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as problem:
            return one_line(f"no completion in it: {problem}", 200)
    fallback = "no answer" if status is None else f"HTTP {status}"
    message, code, param = retries.told(error or body, fallback)
    if code in retries.FILTERED:
        return ChatReply(finish_reason="content_filter")
    said = one_line(message if message == fallback else f"{fallback}: {message}", 200)
    field = retries.refused_field(OPTIONAL, param, message) if status in (400, 422) else None
    return f"{said} ({_HELP[field]})" if field else said


def _digest(reply: ChatReply) -> bytes:
    text = json.dumps(reply.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _id(key: str) -> bytes:
    """An id in half the room, if it is a key."""
    if len(key) == _KEY:
        try:
            return b"k" + bytes.fromhex(key)
        except ValueError:
            pass
    return b"t" + key.encode("utf-8", "surrogatepass")


def _text(key: bytes) -> str:
    return key[1:].hex() if key[:1] == b"k" else key[1:].decode("utf-8", "surrogatepass")
