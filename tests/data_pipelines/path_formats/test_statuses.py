"""When a run must stop because the policy does not follow its format, and what it is told then."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.path_formats.statuses import (
    STATUSES,
    check_readable,
    count_statuses,
    unreadable,
    usable,
)
from srpo_jax.errors import UserError


def test_what_is_usable():
    """A reply that is certain; irregular paths only when asked for; nothing that was cut."""
    assert {s for s in STATUSES if usable(s)} == {"ok", "several_closings", "no_thinking"}
    assert {s for s in STATUSES if usable(s, "keep")} - {s for s in STATUSES if usable(s)} == {
        "irregular"
    }


def test_more_than_half_of_at_least_64():
    """63 answers prove nothing, half of 64 not ok is let pass, one more is not."""
    for ok, bad in ((0, 63), (32, 32)):
        check_readable({"ok": ok, "no_reply": bad}, ok + bad, "x", "lines")
    with pytest.raises(UserError, match="33 of 64 .*format.kind=think.*no_reply 33"):
        check_readable({"ok": 31, "no_reply": 33}, 64, "x", "think")


def test_the_message_is_one_line_and_shows_a_text():
    """Start and end of a long text; the cure is another one where the token limit cut most."""
    text = "START\n" + "word " * 5000 + "END"
    told = unreadable({"unclosed": 64}, 64, text, "think")
    assert told and "START" in told and "END" in told and len(told) < 500 and "\n" not in told
    assert "set format.kind" in told
    cut = unreadable({"unfinished": 60, "ok": 10}, 70, text, "think")
    assert cut and "raise max_new_tokens" in cut


def test_counts_are_in_order():
    found = count_statuses(["unfinished", "ok", "no_reply", "ok"])
    assert list(found.items()) == [("ok", 2), ("no_reply", 1), ("unfinished", 1)]
