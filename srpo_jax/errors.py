"""The two exceptions that are printed as one line: the user can fix it, or starting again may."""

from __future__ import annotations


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
    space, and what is longer than `limit` characters is cut.
    """
    return " ".join(str(text).split())[:limit]
