"""Replies on disk: whole parts or none, whoever is killed and whoever writes beside."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.errors import UserError
from tests.support import ROOT

WORDS = (("safe", {"safe": -0.25, "unsafe": -1.5}), ("}", None))


def key(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def reply(i: int) -> ChatReply:
    text = f"{i} ü \u2028 \ud800"
    return ChatReply(text, None, "stop", i, 2, WORDS, "m", ("seed",))


def test_what_was_put_is_there_again(tmp_path):
    """After a flush or a full part, in another process, to the last field; the later of two counts;
    what is no answer is not kept; a part is never written again.
    """
    cache = ReplyCache(tmp_path, every=4)
    for i in range(10):
        cache.put(key(i), reply(i))
    cache.put(key(99), ChatReply(error="HTTP 500"))
    assert len(ReplyCache(tmp_path)) == 8
    cache.flush()
    first = (tmp_path / "part-00000.jsonl").read_bytes()
    again = ReplyCache(tmp_path)
    assert len(again) == 10 and again.get(key(99)) is None
    assert [again.get(key(i)) for i in range(10)] == [reply(i) for i in range(10)]
    again.put(key(3), reply(33))
    assert again.get(key(3)) == reply(33)
    again.flush()
    assert ReplyCache(tmp_path).get(key(3)) == reply(33)
    assert (tmp_path / "part-00000.jsonl").read_bytes() == first


def test_seconds_fill_a_part_too(tmp_path):
    """A slow judge loses little when it is killed."""
    cache = ReplyCache(tmp_path, seconds=0.0)
    cache.put(key(0), reply(0))
    assert len(ReplyCache(tmp_path)) == 1


def test_a_part_without_a_manifest_is_not_read_and_not_overwritten(tmp_path):
    (tmp_path / "part-00000.jsonl").write_text('{"key": "half')
    cache = ReplyCache(tmp_path, every=1)
    cache.put(key(0), reply(0))
    assert (tmp_path / "part-00000.jsonl").read_text() == '{"key": "half'
    assert ReplyCache(tmp_path).get(key(0)) == reply(0)


def test_a_damaged_part_is_named(tmp_path):
    """Neither a changed byte nor a lost file goes unnoticed."""
    cache = ReplyCache(tmp_path, every=1)
    cache.put(key(0), reply(0))
    part = tmp_path / "part-00000.jsonl"
    part.write_bytes(part.read_bytes().replace(b"stop", b"st0p"))
    with pytest.raises(UserError, match="part-00000.jsonl is not what its manifest says"):
        ReplyCache(tmp_path)
    part.unlink()
    with pytest.raises(UserError, match="part-00000.jsonl"):
        ReplyCache(tmp_path)


def test_a_full_disk_gets_no_fuller(tmp_path, monkeypatch):
    """What could not be written whole is not left there, and is written when there is room."""
    cache = ReplyCache(tmp_path, every=1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for i in range(3):
            with pytest.raises(OSError):
                cache.put(key(i), reply(i))
    assert list(tmp_path.iterdir()) == []
    cache.flush()
    assert len(ReplyCache(tmp_path)) == 3


def test_read_only_and_off_write_nothing(tmp_path):
    ReplyCache(tmp_path, every=1).put(key(0), reply(0))
    before = sorted(os.listdir(tmp_path))
    for mode, there in (("readonly", reply(0)), ("off", None)):
        cache = ReplyCache(tmp_path, mode, every=1)
        cache.put(key(1), reply(1))
        cache.flush()
        assert (cache.get(key(0)), cache.get(key(1))) == (there, None)
    assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(UserError, match="readwrite, readonly, off"):
        ReplyCache(tmp_path, "write")


def test_several_write_into_one_folder(tmp_path):
    """Two caches that know nothing of each other lose nothing and overwrite nothing."""

    def work(start: int) -> None:
        cache = ReplyCache(tmp_path, every=3)
        for i in range(start, start + 30):
            cache.put(key(i), reply(i))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = ReplyCache(tmp_path)
    assert len(cache) == 90 and cache.get(key(229)) == reply(229)


def test_a_process_that_is_killed_leaves_whole_parts(tmp_path):
    """SIGKILL while it writes: what is there can be read, and is a beginning of what was put."""
    code = (
        "from tests.arbiter.chat.test_reply_cache import *\n"
        "cache = ReplyCache(sys.argv[1], every=2)\n"
        "i = 0\n"
        "while True:\n"
        "    cache.put(key(i), reply(i)); i += 1\n"
        "    if i == 20: print('on the way', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    cache = ReplyCache(tmp_path)
    assert len(cache) >= 20 and len(cache) % 2 == 0
    assert [cache.get(key(i)) for i in range(len(cache))] == [reply(i) for i in range(len(cache))]
