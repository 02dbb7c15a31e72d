"""What went wrong with a bucket, in a line that names it: three libraries speak to it, and each has
errors of its own.
"""

from __future__ import annotations

import errno
import os
import re

from srpo_jax.errors import RunFailure, UserError, one_line

# How tensorstore and gcsfs begin what they say of an HTTP status.
SAID = {
    401: re.compile(r"\bUNAUTHENTICATED\b"),
    403: re.compile(r"\bPERMISSION_DENIED\b|^Forbidden\b"),
    429: re.compile(r"\bRESOURCE_EXHAUSTED\b"),
    503: re.compile(r"\bUNAVAILABLE\b|\bDEADLINE_EXCEEDED\b|\bABORTED\b"),
}
QUOTA = re.compile("quota", re.IGNORECASE)
NETWORK = ("aiohttp", "requests", "urllib3", "socket")  # packages whose errors are of the network


def told(error: BaseException, address: str) -> Exception | None:
    """The error to raise instead: UserError for what somebody must mend (credentials, permissions,
    a bucket that is not there), OSError EDQUOT for a quota that is used up, RunFailure for what may
    pass. None for an error that is none of the bucket: of a file in it, say.
    """
    status, text = _status(error), one_line(error, 160) or type(error).__name__
    if status is None:
        return None
    if status in (403, 429) and QUOTA.search(str(error)):
        return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), address)
    if status in (401, 403):
        return UserError(
            f"{address}: the bucket refuses the credentials of this machine, which need the role "
            f"roles/storage.objectUser ({text})"
        )
    if status == 404:
        return UserError(f"{address}: there is no such bucket ({text})")
    return RunFailure(f"{address}: the bucket does not answer as it should ({text})")


def _status(error: BaseException) -> int | None:
    """The HTTP status of a failed request; 503 for one that did not come through."""
    code = getattr(error, "code", None)
    package, _, module = type(error).__module__.partition(".")
    if package == "google" and module.startswith("auth"):
        passes = type(error).__name__ in ("TransportError", "TimeoutError")
        return 503 if passes else 401
    if package in ("google", "gcsfs") and str(code).isdecimal():
        return int(str(code))
    if package in (*NETWORK, "google", "gcsfs") or isinstance(
        error, (ConnectionError, TimeoutError)
    ):
        return 503
    if type(error) in (ValueError, OSError, RuntimeError):
        return next((code for code, said in SAID.items() if said.search(str(error))), None)
    return None
