"""srpo_jax/models/hf/weights_digest.py: weights are hashed once and never taken for others."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time

import pytest

from srpo_jax.models.hf import weights_digest
from srpo_jax.models.hf.weights_digest import KEPT, policy_digest, spot_digest
from tests.support.tiny import tiny_qwen2_5_vl


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A checkpoint of two weight files that nobody has touched for a minute, as far as the digest
    knows: the clock of this process is ahead.
    """
    monkeypatch.setattr(weights_digest, "WORTH_KEEPING", 0)
    monkeypatch.setattr(weights_digest, "BLOCK", 1000)  # a file is several of them
    monkeypatch.setattr(weights_digest, "_found", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    folder = tiny_qwen2_5_vl(tmp_path / "model", max_shard_size=60_000)
    now = time.time_ns
    monkeypatch.setattr(weights_digest.time, "time_ns", lambda: now() + 60 * 10**9)
    return folder


def hashed(folder: pathlib.Path) -> str:
    """The digest as it is defined, of the bytes that are there now."""
    digest = hashlib.sha256()
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    for file in sorted(files, key=lambda file: file.name):
        data = file.read_bytes()
        digest.update(f"{file.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def started_again(folder: pathlib.Path, monkeypatch) -> tuple[str, bool]:
    """(the digest, whether the weights were read) in a process that knows nothing yet."""
    read, real = [], weights_digest._hashed
    monkeypatch.setattr(weights_digest, "_found", {})
    monkeypatch.setattr(weights_digest, "_hashed", lambda files: read.append(1) or real(files))
    found = policy_digest(folder)
    assert policy_digest(folder) == found and len(read) <= 1  # once within a process
    monkeypatch.setattr(weights_digest, "_hashed", real)
    return found, bool(read)


def flip(file: pathlib.Path, bit: int = 1) -> None:
    """One bit in the middle, in place, so that neither size nor inode change."""
    with open(file, "r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ bit]))


def test_weights_are_read_once(folder, monkeypatch):
    """The next start believes what the first one kept: the digest that it would compute."""
    assert started_again(folder, monkeypatch) == (hashed(folder), True)
    assert started_again(folder, monkeypatch) == (hashed(folder), False)
    assert not (folder.parent / "user").exists()


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    """Then it is kept in the user's cache, apart for each folder."""
    (folder / ".cache").touch()  # no folder can be made there, by root either
    assert started_again(folder, monkeypatch) == (hashed(folder), True)
    assert started_again(folder, monkeypatch) == (hashed(folder), False)
    other = folder.with_name("other")
    os.rename(folder, other)
    assert started_again(other, monkeypatch) == (hashed(other), True)


def test_every_change_of_a_file_is_seen(folder, monkeypatch):
    """A bit in place, with the time set back or not; a copy in its place with the same times; a
    file that is new, and the config.
    """
    file = sorted(folder.glob("*.safetensors"))[-1]

    def bit_and_time_back():
        was = file.stat()
        flip(file, 2)
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))

    def replaced():
        was, data = file.stat(), file.read_bytes()
        copy = file.with_name("copy")
        copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(copy, ns=(was.st_atime_ns, was.st_mtime_ns))
        os.replace(copy, file)

    config = folder / "config.json"
    changes = [
        lambda: flip(file),
        bit_and_time_back,
        replaced,
        lambda: config.write_text(config.read_text() + " "),
    ]
    seen = [started_again(folder, monkeypatch)[0]]
    for change in changes:
        change()
        digest = policy_digest(folder)  # the process that knew the files before
        assert digest == hashed(folder)
        assert started_again(folder, monkeypatch)[0] == digest
        seen.append(digest)
    assert len(set(seen)) == len(seen)


def test_what_was_changed_just_now_is_not_kept(folder, monkeypatch):
    """In the same tick of the file system's clock a second change would not show."""
    monkeypatch.undo()
    monkeypatch.setattr(weights_digest, "WORTH_KEEPING", 0)
    monkeypatch.setattr(weights_digest, "_found", {})
    os.utime(sorted(folder.glob("*.safetensors"))[0])
    for _ in range(2):
        assert policy_digest(folder) == hashed(folder)
        assert not (folder / KEPT).exists() and not weights_digest._found


def test_a_file_that_changes_while_it_is_read_is_not_kept(folder, monkeypatch):
    """The digest is that of no state of the folder then."""
    real = weights_digest._hashed

    def slow(files):
        flip(files[-1][0])
        return real(files)

    monkeypatch.setattr(weights_digest, "_hashed", slow)
    policy_digest(folder)
    monkeypatch.setattr(weights_digest, "_hashed", real)
    assert not (folder / KEPT).exists() and not weights_digest._found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"files": 3}', "digest", "\0" * 99]
)
def test_a_damaged_file_is_as_good_as_none(folder, monkeypatch, text):
    """Whatever is found where the digest is kept, the weights are read and it is kept again."""
    started_again(folder, monkeypatch)
    kept = folder / KEPT
    if text == "digest":
        text = json.dumps({**json.loads(kept.read_text()), "digest": "../../../etc/pw"})
    kept.write_text(text)
    assert started_again(folder, monkeypatch) == (hashed(folder), True)
    assert started_again(folder, monkeypatch) == (hashed(folder), False)


def test_small_weights_leave_nothing_behind(folder, monkeypatch):
    """They are hashed sooner than a file is looked for."""
    monkeypatch.setattr(weights_digest, "WORTH_KEEPING", 64 << 20)
    assert started_again(folder, monkeypatch) == (hashed(folder), True)
    assert not (folder / ".cache").exists()


def test_a_glance_tells_other_weights(folder):
    """Other values in a file, another size, another config; a copy elsewhere is the same."""
    base, seen = spot_digest(folder), set()
    twin = folder.with_name("twin")
    for file in folder.iterdir():
        twin.mkdir(exist_ok=True)
        (twin / file.name).write_bytes(file.read_bytes())
    assert spot_digest(twin) == base
    for file in (*sorted(twin.glob("*.safetensors")), twin / "config.json"):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        seen.add(spot_digest(twin))
        file.write_bytes(data + b" ")
        seen.add(spot_digest(twin))
        file.write_bytes(data)
    assert base not in seen and len(seen) == 2 * (len(list(twin.glob("*.safetensors"))) + 1)
