"""srpo_jax/files.py and errors.py: files that are whole or not there, messages of one line."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from srpo_jax import files
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import (
    check_plain_name,
    check_writable,
    file_sha256,
    naming,
    read_json,
    read_lines,
    write_json,
    write_text,
    written_whole,
)
from tests.support.full_disk import full_disk


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


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x"),
        lambda path: write_text(path, "x", flush=True),
        lambda path: write_json(path, {}),
        lambda path: check_writable(path.parent),
    ],
)
def test_a_full_disk_keeps_nothing_and_is_told_by_the_files_name(tmp_path, monkeypatch, write):
    """ENOSPC of a write names no file, or a temporary one: the message says what was to be written,
    and not even an empty temporary file is left."""
    path = tmp_path / "a.json"
    path.write_text("old")
    full_disk(monkeypatch, files)
    with pytest.raises(OSError) as caught:
        write(path)
    error = caught.value
    assert error.errno == errno.ENOSPC
    assert error.filename in (str(path), str(tmp_path))
    assert str(error).endswith(f": {error.filename!r}")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_an_error_keeps_the_name_that_it_has(tmp_path):
    """A file that is missing is told by its own name; an error without a number stays as it is."""
    with pytest.raises(FileNotFoundError) as caught:
        with naming(tmp_path / "a"):
            open(tmp_path / "b")
    assert caught.value.filename == str(tmp_path / "b")
    with pytest.raises(OSError, match="^of a library$"):
        with naming(tmp_path / "a"):
            raise OSError("of a library")
    with pytest.raises(OSError) as renamed:
        with written_whole(tmp_path / "a"):
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "b").touch()
    assert str(renamed.value).endswith(f": {str(tmp_path / 'a')!r}")


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
    "content, said",
    [
        (b"[" * 100_000, "is not JSON: nested too deeply"),
        (b"{}" + b" " * 100, "has 102 bytes, more than the 64 that are read"),
        (b'{"a": "\xff"}', "is not JSON: 'utf-8' codec can't decode"),
        (b"[]", "is not a JSON object"),
        (None, "is no regular file"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, content, said):
    """Also one without end, and one that would fill the memory."""
    path = tmp_path / "a.json"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    if content and len(content) < 1000:
        monkeypatch.setattr(files, "MAX_JSON", 64)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert said in str(error.value) and one_line(error.value) == str(error.value)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a": "\xff"}', b"{"])
def test_a_line_that_is_no_json_is_told_unless_it_is_the_last(tmp_path, line):
    """What a killed writer left at the end is passed over; all else is damage, told in one line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n{}\n")
    with pytest.raises(UserError, match="a.jsonl(:2)? is not ") as error:
        read_lines(path)
    assert one_line(error.value) == str(error.value)
    if b"\xff" not in line:
        path.write_bytes(b'{"a": 1}\n' + line)
        assert read_lines(path) == [{"a": 1}]


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
