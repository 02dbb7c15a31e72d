"""The two exceptions that are printed as one line: the user can fix it, or starting again may."""

from __future__ import annotations

import re

# What a terminal would obey, what turns a line around, and half characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Bad input: exit code 2. The message is one line that says what is wrong, where, and what to
    do.
    """


class RunFailure(RuntimeError):
    """Not the user's mistake: exit code 1, so that launchers start the run again. The message is
    one line that says what failed and where.
    """


def one_line(text: object, limit: int | None = None) -> str:
    """The text of anything (an exception, say) on one line: every run of white space becomes one
    space, what is longer than `limit` characters is cut, and what commands a terminal is a "?".
    """
    return _UNPRINTABLE.sub("?", " ".join(str(text).split())[:limit])
