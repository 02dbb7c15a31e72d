"""The one exception that means "the user can fix this": printed as one line, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what to do."""
