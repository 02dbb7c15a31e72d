"""What a failed request means: try again and when, ask otherwise, give it up, or end the stage.

The classes of failures and the headers are those of the OpenAI API, which its imitators share.
"""

from __future__ import annotations

import email.utils
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_WAIT = 120.0  # seconds; a server that asks for more is asked again after these
FIRST_WAIT = 0.5  # seconds before the second try, without a word of the server
LONGEST_BACKOFF = 30.0

AGAIN = (408, 409, 425, 429)  # and everything from 500
ENDS = (401, 402, 403, 404)
FILTERED = ("content_filter", "content_policy_violation", "image_content_policy_violation")
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")

# How servers say that they do not know a field, and what shows that it is its value that is wrong.
_UNKNOWN = re.compile(
    r"(?i)unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra|not permitted"
    r"|not allowed|not available|not enabled|disabled|invalid"
)
_WORDS = ("temperature", "seed")  # names of fields that are words of English, too
_TOO_LONG = re.compile(r"(?i)context.length|too large|too long")


def wait_asked(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds, from 0 to MAX_WAIT, that the server asks to wait; None when it does not say.

    Read are retry-after-ms, and retry-after in seconds or as a date; now: seconds since 1970.
    """
    try:
        seconds = float(headers["retry-after-ms"]) / 1000
    except (KeyError, ValueError):
        said = headers.get("retry-after", "")
        try:
            seconds = float(said)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(said).timestamp() - now
            except (TypeError, ValueError, OverflowError):
                return None
    return min(max(seconds, 0.0), MAX_WAIT) if seconds == seconds else None


def backoff(tries: int, first: float = FIRST_WAIT) -> float:
    """Seconds to wait after `tries` failed ones, from 1: doubling, with jitter of a half."""
    longest = min(first * 2 ** (tries - 1), LONGEST_BACKOFF)
    return longest * random.uniform(0.5, 1.0)


def refused_field(sent: Iterable[str], param: str | None, message: str) -> str | None:
    """The field, of those that were sent, that a 400 says the server does not take; None when it
    complains of something else. param: the field that the error names by itself, if it does.
    """
    if not _UNKNOWN.search(message) or _TOO_LONG.search(message):
        return None
    sent = list(sent)
    if param:
        inside = [
            name for name in sent if param == name or param.startswith((f"{name}.", f"{name}["))
        ]
        if inside:
            return inside[0]
    for name in sent:
        # A message may quote the request, whose texts may well speak of a temperature.
        quoted = rf"['\"`]{name}['\"`]"
        if re.search(quoted if name in _WORDS else rf"(?<![\w-]){name}(?![\w-])", message):
            return name
    return None


def told(body: Any, fallback: str) -> tuple[str, str, str | None]:
    """(message, code or type, param) of an error's body, in the shapes that servers use."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, str):
        return inner, "", None
    if not isinstance(inner, dict):
        return fallback, "", None
    message = inner.get("message") or inner.get("detail") or fallback
    codes = [str(inner[name]) for name in ("code", "type") if inner.get(name)]
    code = next((c for c in codes if c in (*FILTERED, *NO_MONEY)), codes[0] if codes else "")
    param = inner.get("param")
    return str(message), code, param if isinstance(param, str) else None
