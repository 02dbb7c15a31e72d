"""Which policy lies in a folder: one digest of config.json and all weights, hashed once.

Hashing takes a second per gigabyte, and every verb asks. So the digest of large weights is kept
beside them, in FOLDER/.cache/srpo_jax (no export copies `.cache`), or in the user's cache where
that cannot be written. It is believed only while every file has the name, size, times and inode
that it had, and it is kept only when all were last changed well before they were read: a change in
the same tick of the file system's clock would not show. What is damaged is as good as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from srpo_jax.errors import UserError
from srpo_jax.files import read_json, user_cache, write_text
from srpo_jax.models.hf.load import weight_files

KEPT = pathlib.Path(".cache", "srpo_jax", "policy_digest.json")
WORTH_KEEPING = 64 << 20  # bytes of weights; less is hashed while a file would be looked for
SETTLED = 2 * 10**9  # ns between the last change of a file and the start of hashing
BLOCK, AHEAD = 8 << 20, 8  # bytes that are read at once, and how many such blocks ahead
GLANCES, GLANCE = 16, 4096  # places of a weight file, and bytes, that spot_digest reads

_found: dict[pathlib.Path, tuple[list, str]] = {}  # in this process
_lock = threading.Lock()  # one thread hashes, the others find


def policy_digest(folder: str | os.PathLike) -> str:
    """Which policy this is: sha256 (first 16 hex digits) over config.json and the weight files.

    Large weights are read once, see above. Errors: UserError as `weight_files`, and without a
    config.json; OSError of the file system.
    """
    files = _files(folder)
    with _lock:
        began, facts = time.time_ns(), [_facts(file) for file in files]
        place = pathlib.Path(folder).resolve()
        if _found.get(place, ((), ""))[0] == facts:
            return _found[place][1]
        worth = sum(size for _, size, *_ in facts) >= WORTH_KEEPING
        digest = _kept(place, facts) if worth else ""
        if digest:
            _found[place] = (facts, digest)
            return digest
        digest = _hashed([(file, size) for file, (_, size, *_) in zip(files, facts)])
        latest = max(max(changed) for _, _, *changed, _ in facts)
        if latest + SETTLED < began and facts == [_facts(file) for file in files]:
            _found[place] = (facts, digest)
            if worth:
                _keep(place, facts, digest)
        return digest


def spot_digest(folder: str | os.PathLike) -> str:
    """16 hex digits over config.json, and the names, sizes and a few thousand bytes of the weight
    files: other weights have another one all but surely, and no file is read whole.
    """
    digest = hashlib.sha256()
    for file in _files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as opened:
            if file.name == "config.json":
                digest.update(opened.read())
                continue
            for number in range(GLANCES):
                opened.seek(max(0, size - GLANCE) * number // (GLANCES - 1))
                digest.update(opened.read(GLANCE))
    return digest.hexdigest()[:16]


def _files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """config.json and the weight files, by name."""
    folder = pathlib.Path(folder)
    files = weight_files(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json")
    return sorted([folder / "config.json", *files], key=lambda file: file.name)


def _facts(file: pathlib.Path) -> list:
    """[name, size, times of the last change in ns, inode]. The second time, of the inode, also
    moves when a tool sets the first one back."""
    found = file.stat()
    return [file.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _hashed(files: Sequence[tuple[pathlib.Path, int]]) -> str:
    """The digest of files of these sizes."""
    digest, blocks = hashlib.sha256(), _blocks(files)
    for file, size in files:
        digest.update(f"{file.name}\0{size}\0".encode())
        for block in itertools.islice(blocks, -(-size // BLOCK)):
            digest.update(block)
    return digest.hexdigest()[:16]


def _blocks(files: Sequence[tuple[pathlib.Path, int]]) -> Iterator[bytes]:
    """The contents of the files, one after another, in blocks that threads read ahead: SHA-256
    goes over them in order, but storage is faster when it is asked for several at once."""

    def read(place: tuple[pathlib.Path, int]) -> bytes:
        with open(place[0], "rb") as opened:
            opened.seek(place[1])
            return opened.read(BLOCK)

    places = ((file, at) for file, size in files for at in range(0, size, BLOCK))
    with ThreadPoolExecutor(AHEAD) as threads:
        waiting = deque(threads.submit(read, place) for place in itertools.islice(places, AHEAD))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(threads.submit(read, place) for place in itertools.islice(places, 1))


def _places(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where the digest of a folder's weights may be kept, the better place first."""
    yield folder / KEPT
    with contextlib.suppress(RuntimeError):  # a user without a home
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
        yield user_cache("policy_digests") / f"{name}.json"


def _kept(folder: pathlib.Path, facts: list) -> str:
    """The digest that was kept of these very files; "" if there is none."""
    for place in _places(folder):
        with contextlib.suppress(OSError, UserError):
            found = read_json(place)
            digest = found.get("digest")
            if found.get("files") == facts and isinstance(digest, str):
                if re.fullmatch("[0-9a-f]{16}", digest):
                    return digest
    return ""


def _keep(folder: pathlib.Path, facts: list, digest: str) -> None:
    text = json.dumps({"digest": digest, "files": facts}, indent=1) + "\n"
    for place in _places(folder):
        with contextlib.suppress(OSError, UserError):
            write_text(place, text)
            return
