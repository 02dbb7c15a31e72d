"""Batch files: the requests of a judge as JSONL, for a batch API or `vllm run-batch`, instead of a
server that is asked.

A line is {"custom_id", "method": "POST", "url", "body"}: the key of the request (messages.py), and
the body that a server would get. Answers come back in any order and are matched by that key
(batch_answers.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from srpo_jax.arbiter.chat.messages import ChatReply, ChatRequest
from srpo_jax.arbiter.chat.openai_api import host_of
from srpo_jax.arbiter.chat.wire import TOKEN_NAMES, request_body, token_names
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.files import file_sha256, sync, temporary_name
from srpo_jax.keepers import give_name

URL = "/v1/chat/completions"
MIB = 2**20
MAX_MB = 190  # MiB; OpenAI takes 200 MB (of 10^6 bytes) a file
MAX_LINES = 50_000  # as OpenAI takes
WRITTEN = "written to a batch"


class BatchFile(NamedTuple):
    """A file that was written: requests to one model, so many lines and bytes."""

    path: pathlib.Path
    model: str
    lines: int
    size: int


@dataclass
class _Part:
    model: str
    path: pathlib.Path  # a temporary name
    file: BinaryIO
    lines: int = 0
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def close(self) -> None:
        """Waits until all of it is on the disk."""
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


class BatchWriter:
    """The back end that writes every request once and answers none: each reply is an error.

    path: of the file; with more than one they are PATH's stem with -00000 and so on. host: where
    the requests will go, as for any back end. max_tokens_name: what the server calls the limit; see
    `serving` for both.
    max_bytes, max_lines: of a file. It is used in a `with`: nothing has its name before `finish`,
    and without it nothing is left.
    """

    deferred = True  # what is not answered yet is not the judge's last word

    def __init__(
        self,
        path: str | os.PathLike,
        host: str,
        *,
        max_tokens_name: str = TOKEN_NAMES[0],
        max_bytes: int = MAX_MB * MIB,
        max_lines: int = MAX_LINES,
    ):
        self.path, self.host = pathlib.Path(path), host
        self.max_bytes, self.max_lines = max_bytes, max_lines
        self.unsendable = 0
        self.why_unsendable = ""  # of the first
        self._token_names = token_names(max_tokens_name)
        self._seen: set[bytes] = set()
        self._parts: dict[str, list[_Part]] = {}  # by model

    def __enter__(self) -> BatchWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._all():
            part.file.close()
            part.path.unlink(missing_ok=True)

    def complete(
        self,
        requests: Sequence[ChatRequest],
        on_reply: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """See ChatBackend.complete; on_reply is not called, as there is no answer. Errors:
        UserError for a request that is longer than a file may be, RunFailure for a full disk.
        """
        return [self.write(request, self._token_names) for request in requests]

    def serving(self, settings: JudgeSettings) -> _OfJudge:
        """This for one of several judges, whose server has a host and a name for the limit of
        tokens of its own. Errors: UserError for an address that is none.
        """
        return _OfJudge(self, host_of(settings.base_url), token_names(settings.max_tokens_name))

    def finish(self) -> list[BatchFile]:
        """Gives the files their names. Returns them in order; [] without a request.

        Errors: UserError when there is a file of such a name that this did not write, and then no
        file has a name. One with the same contents stays: the same command may be run again.
        """
        parts = self._all()
        for part in parts:
            part.close()
        names = [self._name(number, len(parts)) for number in range(len(parts))]
        if parts:
            self._check_names(dict(zip(names, parts)))
        for name, part in zip(names, parts):
            give_name(part.path, name)
        if parts:
            sync(self.path.parent)
        return [
            BatchFile(name, part.model, part.lines, part.size) for name, part in zip(names, parts)
        ]

    def _all(self) -> list[_Part]:
        return [part for parts in self._parts.values() for part in parts]

    def write(self, request: ChatRequest, names: Sequence[str]) -> ChatReply:
        """Writes one request; names: of the limit of tokens. See `complete`."""
        key = bytes.fromhex(request.key)
        if key in self._seen:
            return ChatReply(error=WRITTEN)
        self._seen.add(key)
        try:
            body = request_body(request, names)
        except Exception as error:  # of a picture, say
            why = one_line(f"cannot be sent: {error}", 200)
            self.unsendable += 1
            self.why_unsendable = self.why_unsendable or why
            return ChatReply(error=why)
        row = {"custom_id": request.key, "method": "POST", "url": URL, "body": body}
        line = json.dumps(row).encode() + b"\n"
        if len(line) > self.max_bytes:
            raise UserError(
                f"a request has {len(line) / MIB:.1f} MiB, more than a batch file may: set"
                " judge.image_max_side, or a larger --batch_mb"
            )
        try:
            part = self._part(request.model, len(line))
            part.file.write(line)
        except OSError as error:
            raise RunFailure(f"{self.path} cannot be written: {one_line(error)}") from None
        part.digest.update(line)
        part.lines += 1
        part.size += len(line)
        return ChatReply(error=WRITTEN)

    def _part(self, model: str, more: int) -> _Part:
        """The open file of a model, with room for so many bytes more."""
        parts = self._parts.setdefault(model, [])
        if parts:
            last = parts[-1]
            if last.size + more <= self.max_bytes and last.lines < self.max_lines:
                return last
            last.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = temporary_name(self.path)
        parts.append(_Part(model, fresh, open(fresh, "xb")))
        return parts[-1]

    def _name(self, number: int, count: int) -> pathlib.Path:
        if count == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{number:05d}{self.path.suffix}")

    def _check_names(self, named: dict[pathlib.Path, _Part]) -> None:
        stem, suffix = re.escape(self.path.stem), re.escape(self.path.suffix)
        ours = re.compile(rf"{re.escape(self.path.name)}|{stem}-\d{{5,}}{suffix}")
        for path in sorted(self.path.parent.iterdir()):
            if not ours.fullmatch(path.name):
                continue
            part = named.get(path)
            same = part and path.is_file() and file_sha256(path) == part.digest.hexdigest()
            if not same:
                raise UserError(
                    f"{path} is there, and holds something else than what would be written now:"
                    " remove it, or give --write_batch another name"
                )


@dataclass
class _OfJudge:
    """The back end of one judge; see BatchWriter.serving."""

    writer: BatchWriter
    host: str
    names: Sequence[str]

    def complete(
        self,
        requests: Sequence[ChatRequest],
        on_reply: Callable[[int, ChatReply], None] | None = None,
    ) -> list[ChatReply]:
        """See BatchWriter.complete."""
        return [self.writer.write(request, self.names) for request in requests]
