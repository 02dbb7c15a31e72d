"""srpo_jax/files.py and errors.py: files that are whole or not there, messages of one line."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from srpo_jax.errors import UserError, one_line
from srpo_jax.files import check_plain_name, check_writable, file_sha256, write_text, written_whole


@pytest.mark.parametrize("flush", [False, True])
def test_a_file_is_replaced_when_it_is_whole(tmp_path, flush):
    """Until then, and after an error, the old contents stand, and nothing else is left behind."""
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old", flush=flush)
    with pytest.raises(ZeroDivisionError):
        with written_whole(path, flush=flush) as fresh:
            fresh.write_text("half")
            assert path.read_text() == "old"
            raise ZeroDivisionError
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    with written_whole(path, flush=flush) as fresh:
        fresh.write_text("abc")
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    assert file_sha256(path).startswith("ba7816bf") and path.stat().st_size == 3


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A folder, or a device: as root, renaming over /dev/null would make a file of it."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match=f"{name} is there and is no file"):
            write_text(tmp_path / name, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]
    assert (tmp_path / "folder").is_dir() and (tmp_path / "pipe").is_fifo()


def test_a_message_is_one_line():
    """Line ends, tabs and runs of spaces become one space; what is too long is cut."""
    assert one_line(ValueError(" a\n\n\tb  c\r\n")) == "a b c"
    assert one_line("a\nb c", 3) == "a b" and one_line("") == ""


def test_a_message_commands_no_terminal():
    """Escapes, bidirectional controls and half characters become "?"; all other text stays."""
    assert one_line("a\x1b[31mb\u202ec\ud800\x00\x9b") == "a?[31mb?c???"
    for text in ("Grüße 回复 \u200d مرحبا", "a\u0301"):
        assert one_line(text) == text
        assert one_line(text).encode("utf-8")


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "a/b", "/a", "a\nb", "a\x1b[2J", "a\0", "x" * 201, "\ud800", "é" * 101],
)
def test_what_names_no_folder_is_one_line(name):
    """A name that a user gives to a folder is checked before a file is made by it."""
    with pytest.raises(UserError, match="--name=.*: must be a plain folder name") as error:
        check_plain_name(name, "--name")
    assert one_line(error.value) == str(error.value).replace("=  ", "= ")
    for fine in ("a", "a b*[x]é", ".hidden", "-x", "x" * 200):
        check_plain_name(fine, "--name")


def test_a_full_disk_keeps_nothing_of_a_probe(tmp_path, monkeypatch):
    """The file that tries whether a folder can be written to is gone, whatever comes of it."""

    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        check_writable(tmp_path / "new")
    assert not any((tmp_path / "new").iterdir())
