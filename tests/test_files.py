"""srpo_jax/files.py and errors.py: files that are whole or not there, messages of one line."""

from __future__ import annotations

import pytest

from srpo_jax.errors import one_line
from srpo_jax.files import file_sha256, write_text, written_whole


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


def test_a_message_is_one_line():
    """Line ends, tabs and runs of spaces become one space; what is too long is cut."""
    assert one_line(ValueError(" a\n\n\tb  c\r\n")) == "a b c"
    assert one_line("a\nb c", 3) == "a b" and one_line("") == ""
