"""srpo_jax/console.py: what a terminal and a log see of a command that is at work."""

from __future__ import annotations

import io
import re
import sys

import pytest

from srpo_jax import console
from srpo_jax.console import Bar, Working, bar, compiling, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text: str) -> list[str]:
    """What is seen: a carriage return begins the line anew, ESC [K clears the rest of it."""
    return [line.rpartition("\r")[2].replace("\x1b[K", "") for line in text.split("\n")]


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch):
    """Whatever comes between stands on a line of its own, and the shell's prompt does too."""
    now, terminal = [0.0], Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Bar(clock=lambda: now[0]) as shown:
        for step in (1, 2, 3):
            now[0] += 1
            shown.show(f"step {step}/4 " + "x" * 200, step, 4)
        say("a warning")
        now[0] += 1
        shown.show("step 4/4", 4, 4)
    seen = screen(terminal.getvalue())
    assert seen == [
        ("[###############-----] step 3/4 " + "x" * 200)[:119],
        "a warning",
        "[####################] step 4/4",
        "",
    ]


def test_a_log_has_plain_lines_now_and_then(capsys):
    """No control characters, no bar; in two hours of a call a second some hundreds of lines, of
    which the last says that all is done.
    """
    now = [0.0]
    with Bar(clock=lambda: now[0]) as shown:
        for second in range(1, 7201):
            now[0] += 1
            shown.show(f"{second}/7200", second, 7200)
    out = capsys.readouterr().out
    assert "\r" not in out and "\x1b" not in out and "[" not in out
    lines = out.splitlines()
    assert lines[0] == "1/7200" and lines[-1] == "7200/7200" and 250 < len(lines) < 400


def test_bars_end_where_they_should():
    """Empty, half, full; more than all, and nothing to do, are full."""
    counts = [bar(done, total).count("#") for done, total in ((0, 7), (5, 10), (7, 7), (9, 7))]
    assert counts == [0, 10, 20, 20] and bar(0, 0).count("#") == 20


def test_compiling_is_said_and_left_out_of_rates(capsys, monkeypatch):
    """Before it begins, while it goes on, and when it is over; a clock of work does not count it,
    also when it fails.
    """
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    work = Working(clock=lambda: now[0])
    now[0] += 4
    with compiling("train"):
        assert capsys.readouterr().err == "train: compiling, which may take minutes\n"
        now[0] += 93
    assert capsys.readouterr().err == "train: compiled in 93 s\n"
    assert work.seconds() == pytest.approx(4)
    with pytest.raises(ValueError), compiling("x", quiet=True):
        now[0] += 50
        raise ValueError
    assert work.seconds() == pytest.approx(4) and capsys.readouterr().err == ""


def test_a_long_compilation_is_no_silence(capsys, monkeypatch):
    """Else a pod's log looks dead for an hour."""
    monkeypatch.setattr(console, "STILL_SECONDS", 0.01)
    with compiling("train"):
        while "still" not in (said := capsys.readouterr().err):
            console.time.sleep(0.01)
    assert re.search(r"^train: still compiling, 0 s$", said, re.MULTILINE)
