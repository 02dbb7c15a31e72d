"""Raw replies of chat models on disk, so that no question is paid for twice.

A folder of numbered parts: part-00000.jsonl, one reply a line, and part-00000.jsonl.manifest.json,
which is written last. A part with a manifest never changes; one without is left over from a process
that was killed, is not read, and keeps its number. So the folder may lie in a bucket, and several
processes may write into it. Of two replies to the same request the later one counts.

What a reply means is not kept: a better parser reads the old replies anew.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import threading
import time
from typing import Any

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.data_pipelines.json_parts import MANIFEST_SUFFIX, manifest_path, next_number
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import file_sha256, naming, read_json, sync, write_text
from srpo_jax.keepers import keeper_of

MODES = ("readwrite", "readonly", "off")
EVERY, SECONDS = 256, 20.0  # replies, and seconds, after which a part is written
_PART = re.compile(r"part-(\d{5,})\.jsonl")


class ReplyCache:
    """The replies of a folder. mode: readwrite; readonly: what is not there is not asked; off.

    every, seconds: at most so many replies, and about so many seconds of them, are lost when the
    process is killed. Errors: UserError for a part that is not what its manifest says.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        mode: str = "readwrite",
        *,
        every: int = EVERY,
        seconds: float = SECONDS,
    ):
        if mode not in MODES:
            raise UserError(f"--cache={mode}: it must be one of {', '.join(MODES)}")
        self.folder, self.mode = pathlib.Path(folder), mode
        self.every, self.seconds = every, seconds
        self._places: dict[bytes, tuple[int, int]] = {}  # by key: number of the part, offset in it
        self._fresh: dict[str, ChatReply] = {}  # not yet in a part
        self._since = 0.0
        self._lock = threading.Lock()
        if mode != "off":
            for number in _numbers(self.folder):
                self._read_part(number)

    @property
    def readonly(self) -> bool:
        """Whether what is not here must not be asked."""
        return self.mode == "readonly"

    def __len__(self) -> int:
        return len(self._places | {bytes.fromhex(key): None for key in self._fresh})

    def __contains__(self, key: str) -> bool:
        return key in self._fresh or bytes.fromhex(key) in self._places

    def get(self, key: str) -> ChatReply | None:
        """The reply to the request of this key; None when there is none."""
        with self._lock:
            if key in self._fresh:
                return self._fresh[key]
            place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        number, offset = place
        with open(self._part(number), "rb") as file:
            file.seek(offset)
            return _reply(json.loads(file.readline()), self._part(number))

    def put(self, key: str, reply: ChatReply) -> None:
        """Keeps an answer. What is no answer (reply.error) is not kept, nor is anything by a cache
        that is read only or off. Thread-safe.
        """
        if self.mode != "readwrite" or reply.error is not None:
            return
        with self._lock:
            if not self._fresh:
                self._since = time.monotonic()
            self._fresh[key] = reply
            full = len(self._fresh) >= self.every
            if full or time.monotonic() - self._since >= self.seconds:
                self._write_part()

    def flush(self) -> None:
        """Writes what is not yet on disk."""
        with self._lock:
            if self._fresh:
                self._write_part()

    def _part(self, number: int) -> pathlib.Path:
        return self.folder / f"part-{number:05d}.jsonl"

    def _write_part(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = next_number(_numbers(self.folder, finished=False))
        while not self._wrote_part(number):  # another process was faster
            number += 1

    def _wrote_part(self, number: int) -> bool:
        """Writes the fresh replies into the part of this number; False when there is one."""
        places, path = {}, self._part(number)
        try:
            file = open(path, "xb")
        except FileExistsError:
            return False
        try:
            with naming(path), file:
                for key, reply in self._fresh.items():
                    places[bytes.fromhex(key)] = (number, file.tell())
                    line = json.dumps({"key": key, "reply": reply.to_dict()}, ensure_ascii=True)
                    file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if keeper := keeper_of(path):
                keeper.make(path)
            manifest = {"count": len(places), "sha256": file_sha256(path)}
            write_text(manifest_path(path), json.dumps(manifest) + "\n", flush=True)
        except BaseException as error:  # of a full disk, which a part that nobody reads would fill
            if not manifest_path(path).exists():
                path.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                return False
            raise
        sync(self.folder)
        self._places.update(places)
        self._fresh = {}
        return True

    def _read_part(self, number: int) -> None:
        path = self._part(number)
        manifest = read_json(manifest_path(path))
        if not path.is_file() or manifest.get("sha256") != file_sha256(path):
            raise UserError(f"{path} is not what its manifest says: delete both, to ask again")
        offset = 0
        with open(path, "rb") as file:
            for line in file:
                row = json.loads(line)
                _reply(row, path)
                self._places[bytes.fromhex(row["key"])] = (number, offset)
                offset += len(line)


def _reply(row: Any, path: pathlib.Path) -> ChatReply:
    try:
        return ChatReply.from_dict(row["reply"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no replies of this version: {one_line(error, 160)}"
        ) from None


def _numbers(folder: pathlib.Path, *, finished: bool = True) -> list[int]:
    """The numbers of the parts in a folder, in order: of those with a manifest, or of all."""
    if not folder.is_dir():
        return []
    names = {path.name for path in folder.iterdir()}
    found = []
    for name in names:
        match = _PART.fullmatch(name.removesuffix(MANIFEST_SUFFIX))
        if match and (not finished or name.endswith(MANIFEST_SUFFIX)):
            found.append(int(match[1]))
    return sorted(set(found))
